"""ExecStop= of a training job: which processes it tells what, and what it waits for.

It runs here on a copy of the script whose control group is a folder. A thread keeps its cgroup.procs as the kernel
would, for the processes of a session.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.runtime.jobs import Place

pytestmark = pytest.mark.subprocess

EXEC_STOP = Path(__file__).resolve().parents[3] / "systemd" / "torchpar-stop"


class Unit:
    """A job's processes and their control group."""

    def __init__(self, place: Place, text: str) -> None:
        """Start the script; it writes a line when it is ready."""
        self.place = place
        self.group = place.path / "group" / "a.service"
        self.group.mkdir(parents=True)
        stop = EXEC_STOP.read_text(encoding="utf-8")
        for old, new in (("/proc/self/cgroup", place.path / "cgroup"), ("/sys/fs/cgroup", self.group.parent)):
            assert old in stop
            stop = stop.replace(old, str(new))
        self.stop = place.write("torchpar-stop", "")
        self.stop.write_text(stop, encoding="utf-8")
        place.write("cgroup", "1:name=systemd:/\n0::/a.service\n")
        place.write("x.py", HEAD + text)
        self.environ = {"PATH": os.defpath, "RUNTIME_DIRECTORY": str(place.path)}
        self.main = subprocess.Popen(
            [sys.executable, "-u", str(place.launcher), "--", "x.py"],
            cwd=place.path,
            env=self.environ,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self.done = threading.Event()
        self.keeper = threading.Thread(target=self._keep)
        self.keeper.start()
        assert self.main.stdout and self.main.stdout.readline() == "ready\n"

    def processes(self) -> list[int]:
        """What has not ended of it."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                    if int(session) == self.main.pid and state not in "ZX":
                        found.append(int(folder.name))
        return found

    def _keep(self) -> None:
        new = self.group / "new"
        while not self.done.wait(0.02):
            self.main.poll()
            new.write_text("".join(f"{number}\n" for number in self.processes()))
            new.rename(self.group / "cgroup.procs")

    def end_at_the_request(self, until: str = "") -> None:
        """Have ExecStop= wait after the request until the job has written this file, or its main process has ended."""
        request = '{ true >"$directory/stop"; }'
        stop = self.stop.read_text(encoding="utf-8")
        assert stop.count(request) == 1
        goes_on = f'[ ! -e "$directory/{until}" ]' if until else 'kill -0 "$MAINPID"'
        waits = f'{{ true >"$directory/stop"; while {goes_on}; do sleep 0.02; done; }}'
        self.stop.write_text(stop.replace(request, waits), encoding="utf-8")

    def begin(self, grace: str, **environ: str) -> subprocess.Popen[str]:
        """Start ExecStop=, when the group holds what there is now."""
        procs = self.group / "cgroup.procs"
        wait_until(lambda: procs.exists() and sorted(map(int, procs.read_text().split())) == sorted(self.processes()))
        return subprocess.Popen(
            ["sh", str(self.stop), grace],
            env={**self.environ, "MAINPID": str(self.main.pid), **environ},
            stderr=subprocess.PIPE,
            text=True,
        )

    def stopped(self, grace: str = "100", **environ: str) -> tuple[int, str]:
        """Run ExecStop= to its end; its status and what it said."""
        process = self.begin(grace, **environ)
        _, errors = process.communicate(timeout=300)
        return process.returncode, errors

    def end(self) -> None:
        """Leave nothing behind."""
        while left := self.processes():
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            self.main.poll()
        self.done.set()
        self.keeper.join()
        self.main.communicate()


HEAD = """
import os, signal, subprocess, sys, time
import torchpar.runtime

def put(name):
    with open(name + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".new", name)

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.02)

def save(number, frame):
    # As a rank does that has to write for long.
    put("saving")
    wait_for("go-on")
    put("saved")
    sys.exit(0)

def ready():
    os.write(1, b"ready\\n")

"""


def wait_until(condition: object) -> None:
    """Ask until the answer is true."""
    deadline = time.monotonic() + 300
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def unit(place: Place, text: str) -> Iterator[Unit]:
    """A job that is ready, and nothing of it afterwards."""
    job = Unit(place, text)
    try:
        yield job
    finally:
        job.end()


def test_a_script_that_asks_saves_and_ends_with_its_own_status(place: Place) -> None:
    """It is sent no signal, and the request does not outlive it."""
    text = """
torchpar.runtime.stop_requested()
ready()
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
put("saved")
sys.exit(3)
"""
    with unit(place, text) as job:
        assert job.stopped() == (0, "")
        assert job.main.wait(300) == 3 and (place.path / "saved").exists()
        assert not (place.path / "stop").exists()


@pytest.mark.parametrize(
    ("grace", "asks"),
    [
        ("0", "torchpar.runtime.stop_requested()"),
        ("1", "torchpar.runtime.stop_requested()"),
        ("1", "signal.signal(signal.SIGTERM, ignore_once)"),
    ],
)
def test_what_does_not_end_in_time_gets_sigterm(place: Place, grace: str, asks: str) -> None:
    """One line says so: to a script that asks, and to one that has not ended by the first."""
    text = f"""
def ignore_once(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
{asks}
ready()
while True:
    time.sleep(600)
"""
    with unit(place, text) as job:
        said = f"not ended within the {grace} s of CheckpointGrace=: SIGTERM, and SIGKILL in 10 s\n"
        assert job.stopped(grace) == (0, said)
        assert job.main.wait(300) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("before", "forced"),
    [("", 1), ("7 2\n", 3), ("7 08\n", 1), ("x", 1), ("7 $(touch x)\n", 1), ("7 99999999999999999999\n", 1)],
)
def test_how_long_a_stop_took_is_noted_and_how_many_were_forced(place: Place, before: str, forced: int) -> None:
    """Whatever stands there before."""
    cache = place.path / "cache"
    cache.mkdir()
    note = cache / "torchpar-stop"
    note.write_text(before)
    hangs = "torchpar.runtime.stop_requested()\nready()\nwhile True:\n    time.sleep(600)\n"
    with unit(place, hangs) as job:
        job.stopped("0", CACHE_DIRECTORY=str(cache))
        assert re.fullmatch(rf"[0-9]+ {forced}\n", note.read_text())


def test_a_link_in_the_place_of_the_note_is_left_with_what_it_leads_to(place: Place) -> None:
    """The job's user may write there, and may have made it before it was that of the service."""
    cache, kept = place.path / "cache", place.path / "kept"
    cache.mkdir()
    kept.write_text("7 2\n")
    (cache / "torchpar-stop").symlink_to(kept)
    with unit(place, "torchpar.runtime.stop_requested()\nready()\nwhile True:\n    time.sleep(600)\n") as job:
        job.stopped("0", CACHE_DIRECTORY=str(cache))
    assert kept.read_text() == "7 2\n" and (cache / "torchpar-stop").is_symlink()


def test_a_stop_in_time_is_not_noted_as_forced(place: Place) -> None:
    """Without a folder for it nothing is."""
    text = """
torchpar.runtime.stop_requested()
ready()
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
"""
    cache = place.path / "cache"
    cache.mkdir()
    with unit(place, text) as job:
        assert job.stopped(CACHE_DIRECTORY=str(cache)) == (0, "")
    assert re.fullmatch(r"[0-9]+ 0\n", (cache / "torchpar-stop").read_text())


def test_every_process_of_a_script_that_does_not_ask_gets_sigterm_and_the_time(place: Place) -> None:
    """A rank that is saving goes on when its parent has ended; one that is stopped ends too."""
    text = """
if len(sys.argv) > 1:
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    signal.signal(signal.SIGTERM, save)
    ready()
else:
    subprocess.Popen([sys.executable, "x.py", "rank"])
time.sleep(600)
"""
    with unit(place, text) as job:
        stopping = job.begin("100")
        assert job.main.wait(300) == -signal.SIGTERM
        wait_until((place.path / "saving").exists)
        assert stopping.poll() is None
        place.write("go-on", "")
        assert stopping.communicate(timeout=300) == (None, "")
        assert (place.path / "saved").exists() and job.processes() == []


def test_a_parent_does_not_take_its_ranks_with_it(place: Place) -> None:
    """torch.multiprocessing has the kernel interrupt them when it ends: it does so last, and nothing more before."""
    text = """
import ctypes
if os.fork() == 0:
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGTERM, save)
    ready()
    while True:
        time.sleep(1)
os.wait()
put("more")
"""
    with unit(place, text) as job:
        stopping = job.begin("100")
        wait_until((place.path / "saving").exists)
        place.write("go-on", "")
        assert stopping.communicate(timeout=300) == (None, "")
        assert job.main.wait(300) == -signal.SIGTERM
        assert (place.path / "saved").exists() and not (place.path / "more").exists()


# As torch gives them to its workers; from Python they look the same to the kernel.
WORKER = """
def worker(*more):
    for number in (signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGTERM, *more):
        signal.signal(number, lambda number, frame: put("told"))
    put("worker")
    while True:
        time.sleep(1)
"""


# What faulthandler and UCX add, in every process of a job.
MORE = ["", "signal.SIGILL, signal.SIGABRT", "signal.SIGILL"]
NAMED = "open('/proc/self/comm', 'w').write('pt_data_worker')"


@pytest.mark.parametrize("more", MORE)
def test_loader_workers_and_what_they_start_get_no_signal(place: Place, more: str) -> None:
    """One that ends makes its DataLoader raise, in the middle of the last save. They are not waited for either."""
    text = f"""{WORKER}
if os.fork() == 0:
    subprocess.Popen(["sleep", "600"])
    {NAMED if more else "pass"}
    worker({more})
signal.signal(signal.SIGCHLD, lambda number, frame: None)
signal.signal(signal.SIGTERM, save)
wait_for("worker")
ready()
while True:
    time.sleep(1)
"""
    with unit(place, text) as job:
        stopping = job.begin("100")
        wait_until((place.path / "saving").exists)
        place.write("go-on", "")
        assert stopping.communicate(timeout=300) == (None, "")
        assert job.main.wait(300) == 0
        assert not (place.path / "told").exists() and len(job.processes()) == 2


@pytest.mark.parametrize("more", MORE[1:])
def test_a_rank_that_handles_the_same_signals_is_no_loader_worker(place: Place, more: str) -> None:
    """Nor is what it has started; also where the script that has started it has loader workers of its own."""
    text = f"""{WORKER}
signal.signal(signal.SIGCHLD, lambda number, frame: None)
signal.signal(signal.SIGTERM, save)
if len(sys.argv) > 1:
    worker({more})
subprocess.Popen([sys.executable, "x.py", "1"])
wait_for("worker")
ready()
while True:
    time.sleep(1)
"""
    with unit(place, text) as job:
        stopping = job.begin("100")
        wait_until((place.path / "told").exists)
        stopping.kill()
        stopping.communicate()


@pytest.mark.parametrize("ends_at_once", [False, True])
def test_what_one_that_asks_has_forked_may_save_and_other_processes_are_ended(
    place: Place, *, ends_at_once: bool
) -> None:
    """A copy of the process writes a checkpoint while it goes on; a display is no part of that."""
    text = """
subprocess.Popen(["sleep", "600"])
torchpar.runtime.stop_requested()
if os.fork() == 0:
    wait_for("go-on")
    put("saved")
    os._exit(0)
ready()
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
"""
    with unit(place, text) as job:
        if ends_at_once:
            job.end_at_the_request()
        stopping = job.begin("100")
        assert job.main.wait(300) == 0
        wait_until(lambda: len(job.processes()) == 1)
        assert stopping.poll() is None
        place.write("go-on", "")
        assert stopping.communicate(timeout=300) == (None, "")
        assert (place.path / "saved").exists()


@pytest.mark.parametrize("ends_at_once", [False, True])
def test_a_parent_that_waits_for_one_that_asks_ends_by_itself(place: Place, *, ends_at_once: bool) -> None:
    """What it does after its ranks have ended is done."""
    text = """
child = os.fork()
if child == 0:
    os.execv(sys.executable, [sys.executable, "-c", '''
import os, time, torchpar.runtime
torchpar.runtime.stop_requested()
os.write(1, b"ready\\\\n")
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
'''])
os.waitpid(child, 0)
put("waited")
time.sleep(1)
put("saved")
"""
    with unit(place, text) as job:
        if ends_at_once:
            job.end_at_the_request("waited")
        assert job.stopped() == (0, "")
        assert job.main.wait(300) == 0 and (place.path / "saved").exists()


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [("killed", "TERM", 1), ("exited", "143", 1), ("exited", "0", 0), ("killed", "INT", 0)],
)
def test_an_end_by_sigterm_that_nobody_asked_for_is_a_failure(
    place: Place, code: str, status: str, expected: int
) -> None:
    """systemd takes it for clean, and runs ExecStop= then without MAINPID. What is left of the job is stopped."""
    text = """
if os.fork() == 0:
    signal.signal(signal.SIGTERM, save)
    ready()
    while True:
        time.sleep(1)
"""
    with unit(place, text) as job:
        job.main.wait(300)
        place.write("go-on", "")
        said = "the main process was ended by SIGTERM, and nobody had asked for a stop: this is a failure\n"
        assert job.stopped(MAINPID="", EXIT_CODE=code, EXIT_STATUS=status) == (expected, said * expected)
        assert (place.path / "saved").exists() and job.processes() == []
