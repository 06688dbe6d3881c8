"""Starts: ended by a SIGTERM wherever one hangs, with words that say where; and threads that loading leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.serve.engines import Answer, ask, request, serving, value
from tests.serve.service import SOURCE, Service
from torchpar.serve.engine.requests import Response
from torchpar.serve.errors import ModelError

pytestmark = pytest.mark.subprocess

HEAD = """
import ctypes, os, signal, threading, time, torch
INPUTS = [("x", "FP32", (-1, 1))]
OUTPUTS = [("y", "FP32", (-1, 1))]
def here():
    open({here!r}, "w").close()
"""
# Where it hangs: in the file itself, in load(), with a SIGTERM handler of its own, with Python's lock held, in a lock,
# in the trial, and where a worker loads by itself because of a thread that was left behind.
HANGS = {
    "file": "here(); time.sleep(1000)",
    "load": "def load(): here(); time.sleep(1000)",
    "handler": "def load(): signal.signal(signal.SIGTERM, signal.SIG_IGN); here(); time.sleep(1000)",
    "gil": "def load(): here(); ctypes.PyDLL(None).pause()",
    "lock": "def load(): here(); lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "trial": "def load(): pass\ndef predict(batch): here(); time.sleep(1000)",
    "trial-gil": "def load(): pass\ndef predict(batch): here(); ctypes.PyDLL(None).pause()",
    "worker": """
def load():
    if os.path.exists({again!r}):
        here(); time.sleep(1000)
    open({again!r}, "w").close()
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
""",
}


@pytest.fixture(params=[*HANGS, "torch"])
def hanging(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A handler that hangs, and a torch that does."""
    names = {"here": str(tmp_path / "here"), "again": str(tmp_path / "again")}
    path = tmp_path / "m.py"
    if request.param == "torch":
        (tmp_path / "packages").mkdir()
        text = f"import time; open({names['here']!r}, 'w').close(); time.sleep(1000)"
        (tmp_path / "packages/torch.py").write_text(text)
        path.write_text(HEAD.format(**names))
        return path
    parts = [HEAD, "def load(): pass", "def predict(batch): return batch['x']", HANGS[request.param]]
    path.write_text("\n".join(parts).format(**names))
    return path


def below(pid: int) -> set[int]:
    """This process and all that it started."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                found |= below(int(child))
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end(process: subprocess.Popen[bytes], here: Path, number: int = signal.SIGTERM) -> None:
    """Send a signal where it hangs; returns when nothing of it is left."""
    until = time.monotonic() + 300
    while not here.exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    started = below(process.pid)
    process.send_signal(number)
    process.wait(200)
    while any(map(lives, started)):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_service_that_hangs_in_its_start_is_stopped(hanging: Path, tmp_path: Path) -> None:
    """As systemd does when TimeoutStartSec= is over."""
    with Service(tmp_path, hanging, path=tmp_path / "packages") as service:
        end(service.process, tmp_path / "here")
        assert service.process.returncode == 0 and not service.count("READY")
        said = service.log()
    assert "torchpar: process 0 was still loading its models, and has accepted nothing; it was here:" in said
    assert f'File "{tmp_path}/' in said


@pytest.mark.parametrize("hanging", ["gil", "trial", "worker"], indirect=True)
def test_a_server_of_its_own_that_hangs_in_its_start_is_stopped(hanging: Path, tmp_path: Path) -> None:
    """With no first process over it."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-B", "-m", "torchpar.serve", "--handler", str(hanging), "--listen", "127.0.0.1:0"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}/packages:{SOURCE.parent}"}, stderr=log, stdout=log,
        )  # fmt: skip
        end(process, tmp_path / "here")
    assert process.returncode == -signal.SIGTERM


DEAF = "[signal.signal(number, signal.SIG_IGN) for number in (1, 2, 15, 29)]"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_load_that_ignores_all_signals_ends_with_its_server(tmp_path: Path, number: int) -> None:
    """However that ends."""
    text = f"{HEAD}def load(): {DEAF}; here(); time.sleep(1000)\ndef predict(batch): pass\n"
    (tmp_path / "m.py").write_text(text.format(here=str(tmp_path / "here")))
    process = subprocess.Popen(
        [sys.executable, "-B", "-m", "torchpar.serve", "--handler", str(tmp_path / "m.py"), "--listen", "127.0.0.1:0"],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
    )
    end(process, tmp_path / "here", number)


THREADS = """
import ctypes, threading, torch
from concurrent.futures import ThreadPoolExecutor
INPUTS = [("x", "FP32", (-1, 3))]
OUTPUTS = [("y", "FP32", (-1, 3))]
def predict(batch):
    return {"y": twice(batch["x"])}
"""
POOL = """
def load():
    global twice
    pool = ThreadPoolExecutor(2)
    list(pool.map(abs, range(4)))
    twice = lambda x: pool.submit(torch.mul, x, 2.0).result()
"""
TEAM = """
def load():
    global twice
    torch.set_num_threads(2)
    big = torch.randn(1000, 1000)
    twice = lambda x: x * 2.0 + 0.0 * (big @ big).sum()
    twice(1.0)
"""
OVER = """
def load():
    global twice
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(abs, range(100)))
    twice = lambda x: x * 2.0
"""
TAKEN = """
import socket
def load():
    global twice, listener
    listener = socket.create_server(("127.0.0.1", {port}))
    threading.Thread(target=listener.accept, daemon=True).start()
    twice = lambda x: x * 2.0
"""


@pytest.mark.parametrize(
    ("load", "named"), [(POOL, "ThreadPoolExecutor-0_0; "), (TEAM, ", of native code"), (OVER, "")]
)
def test_a_model_that_leaves_threads_behind_is_loaded_by_each_worker(
    tmp_path: Path, journal: Callable[[], str], load: str, named: str
) -> None:
    """A fork would have the pool or the team without its threads, and wait for them for ever."""
    path = tmp_path / "m.py"
    path.write_text(THREADS + load)
    x = torch.arange(6.0).reshape(2, 3)

    async def run() -> None:
        async with serving(path, workers=2) as engine:
            for answer in ask(engine, [request(x * i) for i in range(8)]):
                await answer.values()
            # One that died is back, and works as well.
            runner = engine._repository.get("m").runner
            for pid in runner.pids():  # type: ignore[attr-defined]
                os.kill(pid, signal.SIGKILL)
            got = [await Answer(engine, request(x)).get() for _ in range(20)]
            answers = [value(one.outputs[0]) for one in got if isinstance(one, Response)]
            assert len(answers) >= 18 and all(torch.equal(answer, x * 2) for answer in answers)

    asyncio.run(run())
    said = journal()
    assert "leaves threads behind (" in said if named else "threads" not in said
    assert named in said


def test_what_cannot_be_loaded_twice_is_said_so(tmp_path: Path) -> None:
    """As a port that the first worker has."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = tmp_path / "m.py"
    path.write_text(THREADS + TAKEN.format(port=port))

    async def run() -> None:
        with pytest.raises(ModelError, match=r"m.py: load\(\) failed at .*: OSError: .*Address already in use"):
            async with serving(path, workers=2):
                pass

    asyncio.run(run())
