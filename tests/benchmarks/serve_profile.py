"""Where the CPU time of a request goes in torchpar's server: samples of its stacks by py-spy, told apart by step."""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.benchmarks.serve_load import cpu_seconds

# Step: what is called in it, as function and the end of its file's path; a function of "" is any of the file. A sample
# belongs to the step of its innermost call that is listed: what is called there for all else counts with it.
STEPS: dict[str, tuple[tuple[str, str], ...]] = {
    "receive": (("_read_ready__data_received", "asyncio/selector_events.py"),),
    "parse": (("", "http/parser.py"), ("", "http/connection.py")),
    "route": (("", "http/application.py"), ("", "protocol/service.py")),
    "decode": (("_take", "http/inference.py"), ("", "protocol/layout.py"), ("", "serve/tensors.py")),
    "queue": (
        ("_submit", "http/inference.py"),
        ("submit", "engine/engine.py"),
        ("", "engine/fitting.py"),
        ("", "engine/queue.py"),
        ("", "engine/pool.py"),
        ("", "engine/shared.py"),
        ("", "serve/quiet.py"),
    ),
    "assemble": (("_run", "engine/served.py"), ("", "engine/columns.py"), ("compute", "runners/runner.py")),
    "compute": (("", "models/torchscript.py"), ("", "models/program.py")),
    "compare": (("_watch", "engine/served.py"), ("", "engine/watching.py"), ("", "engine/rows.py")),
    "split": (("answers", "engine/served.py"), ("_answer", "engine/served.py"), ("_finished", "engine/engine.py")),
    "count": (("", "engine/statistics.py"), ("", "engine/curve.py"), ("", "http/log.py")),
    "encode": (("_done", "http/inference.py"), ("", "http/exchange.py"), ("answered", "http/connection.py")),
    "send": (("", "http/writing.py"), ("write", "asyncio/selector_events.py")),
    "event loop": (("", "asyncio/"),),
    "other": (),
}
# Threads wait in these calls; py-spy does not always see that they do not run.
WAITING = (("select", "/selectors.py"), ("_work", "engine/pool.py"), ("_worker", "concurrent/futures/thread.py"))


def busiest(pids: Iterable[int]) -> int:
    """The process that has used the most CPU time itself: one that serves."""
    return max(pids, key=lambda pid: cpu_seconds(pid, alone=True))


def sample(py_spy: Path, pid: int, seconds: float) -> Counter[tuple[str, ...]]:
    """Looks at one process 500 times in a second; returns the stacks that ran, each outermost call first."""
    with tempfile.NamedTemporaryFile("r", suffix=".stacks") as file:
        argv = [py_spy, "record", f"--pid={pid}", f"--duration={max(1, round(seconds))}", "--rate=500"]
        argv += ["--nonblocking", "--format=raw", "--full-filenames", f"--output={file.name}"]
        subprocess.run(argv, check=True, capture_output=True)
        # What is read while it changes py-spy says in a line between the stacks, as the process is not held.
        lines = [line.rstrip().rpartition(" ") for line in file]
    return Counter({tuple(stack.split(";")): int(count) for stack, _, count in lines if count.isdecimal()})


def steps(stacks: Counter[tuple[str, ...]], cpu_us: float) -> dict[str, float]:
    """Divides a request's CPU time among the steps as the samples are; what waiting costs is divided like the rest."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        function, path = _parse(stack[-1])
        if not any(function == name and file in path for name, file in WAITING):
            found[next(filter(None, map(_step, reversed(stack))), "other")] += count
    total = max(1, found.total())
    return {**{step: cpu_us * count / total for step, count in found.items()}, "all": cpu_us}


def _step(frame: str) -> str:
    """The step of a frame, "" for none. The most exact one: a function before its whole file."""
    function, path = _parse(frame)
    for named in (True, False):
        for step, calls in STEPS.items():
            for name, file in calls:
                if bool(name) == named and name in ("", function) and file in path:
                    return step
    return ""


def _parse(frame: str) -> tuple[str, str]:
    """The function of a frame, and the path of its file."""
    function, _, rest = frame.partition(" (")
    return function, rest.rpartition(":")[0]
