"""`make demo`: from this source tree to a job that trains and a service that serves what it learnt, on a throw-away
Debian, and what it looks like.

    python3 -m tests.machines.demo [--suite bookworm|trixie] [--deb FILE]

Exit status 0: the job trained to its end, its loss fell, torchpar found it placed as planned, and the service answered.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import threading
import time
from pathlib import Path

from tests.machines.container import missing_here
from tests.machines.machine import CommandError, Machine, MachineError
from tests.machines.package import PackageError, build_package
from tests.machines.roots import RootError, Suite

_JOB = "torchpar-train@demo"
_SERVICE = "torchpar-infer@demo"

_QUESTION = "Permission is"

# Written to the journal after the job's end, for whoever follows it to know that it was all.
_END = "torchpar-demo-end"

_LOSS = re.compile(r"\bloss[ =:]+([0-9]+(?:\.[0-9]+)?)")


class DemoError(Exception):
    """The demo did not show what it is to show."""


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="demo", description="train torchpar's demo job on a throw-away Debian")
    parser.add_argument("--suite", default="trixie", choices=[suite.value for suite in Suite])
    parser.add_argument("--deb", type=Path, help="install this package instead of building one")
    arguments = parser.parse_args()
    if missing := missing_here():
        sys.exit(missing)
    try:
        with _Clock():
            run_demo(Suite(arguments.suite), arguments.deb)
    except (CommandError, DemoError, MachineError, PackageError, RootError, OSError) as error:
        sys.exit(f"\nthe demo failed: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing is left of the machine")


def run_demo(suite: Suite, deb: Path | None) -> None:
    """Build, boot, install, train, serve."""
    started = time.monotonic()
    package = deb or build_package(suite, _say)
    _say(f"package: {package} ({package.stat().st_size / 1024:.0f} KiB)")
    with Machine(suite, "demo", report=_say) as machine:
        version = machine.run("systemctl", "--version").stdout.splitlines()[0]
        _say(f"booted {suite.release} with {version} in a throw-away machine")
        try:
            _install(machine, package)
            _show(machine, "torchpar", "plan")
            _train(machine)
            _serve(machine)
        except BaseException:
            print(f"\njournal and units of the machine: {machine.save_logs(machine.name)}", file=sys.stderr)
            raise
    _say(f"done in {time.monotonic() - started:.0f} s; nothing is left of the machine")


def _install(machine: Machine, package: Path) -> None:
    _say(f"apt install ./{package.name}: with PyTorch, a fast BLAS and an allocator, as on any Debian")
    started = time.monotonic()
    progress = _Progress()
    machine.install_deb(package, each_line=progress.line)
    progress.end()
    _say(f"installed {progress.packages} packages in {time.monotonic() - started:.0f} s")


class _Progress:
    """How far apt is: on a terminal a line that changes, elsewhere a line when the clock asks for one."""

    def __init__(self) -> None:
        self.packages = 0
        self._done = 0

    def line(self, text: str) -> None:
        if found := re.search(r"(\d+) newly installed", text):
            self.packages = int(found[1])
        if text.startswith(("Unpacking ", "Setting up ")) and self.packages:
            self._done += 1
            # Every package comes twice.
            part = min(1.0, self._done / (2 * self.packages))
            _Clock.now_at = f"{part:.0%}, {text.split(' (')[0]:.60}"
            if sys.stdout.isatty():
                bar = f"[{'#' * round(40 * part):40}] {part:4.0%} {text.split(' (')[0]:.36}"
                print(f"\r\033[K    {bar}", end="", flush=True)

    def end(self) -> None:
        _Clock.now_at = ""
        if sys.stdout.isatty():
            print("\r\033[K", end="")


class _Clock:
    """Where there is no terminal, says every ten seconds how far the demo is, so that nobody takes it for dead."""

    now_at = ""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> None:
        if not sys.stdout.isatty():
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _tick(self) -> None:
        started = time.monotonic()
        while not self._over.wait(10):
            print(f"    {time.monotonic() - started:.0f} s{': ' if self.now_at else ''}{self.now_at}", flush=True)


def _train(machine: Machine) -> None:
    """Start the job, follow it to its end, and have torchpar look at it while it runs."""
    _say(f"systemctl start {_JOB}; journalctl --follow --unit {_JOB}")
    started = time.monotonic()
    # Started in the machine, so that the last line is written right after the job's end, and only then.
    start = 'systemctl start --wait "$1"; end=$?; journalctl --sync; echo "$2 $end" | systemd-cat -t "$2"'
    machine.start("sh", "-c", start, "sh", _JOB, _END)
    losses: list[float] = []
    for line in machine.follow(
        *("journalctl", "--follow", "--lines=all", "--output=cat"),
        *(f"_SYSTEMD_UNIT={_JOB}.service", "+", f"UNIT={_JOB}.service", "+", f"SYSLOG_IDENTIFIER={_END}"),
        timeout=1200,
    ):
        if line.startswith(_END):
            end = line.removeprefix(_END).strip()
            break
        print(f"    {line}", flush=True)
        if found := _LOSS.search(line):
            losses.append(float(found[1]))
            if len(losses) == 1:
                _show(machine, "torchpar", "status")
                _show(machine, "torchpar", "verify")
                _say(f"journalctl --follow --unit {_JOB}")
    result = machine.show(f"{_JOB}.service", "Result")
    if end != "0" or result != "success":
        raise DemoError(f"{_JOB}.service ended with result {result}, systemctl with status {end}")
    if len(losses) < 2 or losses[-1] >= losses[0]:
        raise DemoError(f"the loss did not fall: {losses or 'no line of the journal names one'}")
    _say(f"trained in {time.monotonic() - started:.0f} s; loss {losses[0]:g} -> {losses[-1]:g}; it left")
    for line in machine.run("ls", "-lh", "/var/lib/torchpar/train/demo/").stdout.splitlines()[1:]:
        print(f"    {line}")


def _serve(machine: Machine) -> None:
    """Serve what was trained, ask it, and have torchpar look at it."""
    machine.install("curl", recommends=False)
    started = time.monotonic()
    _show(machine, "systemctl", "start", _SERVICE)
    _say(f"{_SERVICE} is ready after {time.monotonic() - started:.1f} s")
    answer = _show(machine, "curl", "--silent", "--data", json.dumps({"text": _QUESTION}), "localhost:8000/predict")
    outputs = json.loads(answer).get("outputs", {})
    text = str(outputs.get("text", ""))
    if not text.startswith(_QUESTION) or len(text) <= len(_QUESTION):
        raise DemoError(f"{_SERVICE} did not go on with {_QUESTION!r}: {answer}")
    for line in text.splitlines():
        print(f"    | {line}")
    _show(machine, "torchpar", "status")
    _show(machine, "systemctl", "stop", f"{_SERVICE}.socket")


def _show(machine: Machine, *argv: str) -> str:
    """Run a command, show it with what it printed, and return that. Raises CommandError."""
    _say(shlex.join(argv))
    # As on a terminal: what is shown stands four letters to the right.
    result = machine.run("env", "COLUMNS=96", *argv, timeout=120)
    print(result.stderr, end="", file=sys.stderr)
    for line in result.stdout.splitlines():
        print(f"    {line}")
    return result.stdout


def _say(line: str) -> None:
    print(f"\n== {line}" if not line.startswith(" ") else f"  {line}", flush=True)


if __name__ == "__main__":
    main()
