"""A job without a unit: SIGTERM and SIGUSR1 are the request, for a script that asks and has left them alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.unit.runtime.jobs import Place
from tests.unit.runtime.test_launch import RANKS, READY, await_file, running
from torchpar.contract.job import JobSettings, job_environment

pytestmark = pytest.mark.subprocess


def job(signals: str) -> dict[str, str]:
    """The variable of a job of two ranks, of which SIGTERM and SIGUSR1 reach each, or the first process."""
    settings = JobSettings(
        service="torchpar-run-x.service", interop_threads=1, cudnn_benchmark=None, ranks=RANKS, signals=signals
    )
    return job_environment(settings)


def asks(code: str, signals: str = "each") -> tuple[int, str]:
    """Exit status and output of a script that knows stop_requested."""
    before = "import os, signal\nfrom torchpar.runtime import stop_requested\nme = os.getpid()\n"
    environ = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), **job(signals)}
    argv = [sys.executable, "-c", before + code]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_asks_the_script_that_asks(name: str) -> None:
    """It saves and ends as it likes; where there is a unit, and before it asks, a signal is what it always is."""
    kill = f"os.kill(me, signal.{name})\n"
    saves = f"assert not stop_requested()\n{kill}assert stop_requested()\nprint('saved')\n"
    assert asks(saves) == asks(saves, "main") == (0, "saved\n")
    ended = -getattr(signal, name)
    assert asks(saves, "") == asks(f"{kill}stop_requested()\n") == (ended, "")


def test_a_handler_of_the_script_stays() -> None:
    """Whichever came first; the other signal asks."""
    handler = "signal.signal(signal.SIGTERM, lambda *_: print('mine'))\n"
    for code in (f"{handler}stop_requested()\n", f"stop_requested()\n{handler}"):
        code += "os.kill(me, signal.SIGTERM)\nprint(stop_requested())\n"
        code += "os.kill(me, signal.SIGUSR1)\nprint(stop_requested())\n"
        assert asks(code) == (0, "mine\nFalse\nTrue\n")


def test_what_it_forks_can_be_ended_by_multiprocessing() -> None:
    """Process.terminate() sends SIGTERM, and would wait for ever for one that takes it for a question."""
    code = """
import time
stop_requested()
child = os.fork()
if child == 0:
    time.sleep(60)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert asks(code) == (0, "-15\n")


def test_one_that_asks_in_a_thread_first_is_told_that_signals_end_it() -> None:
    """Python has handlers in its main thread alone."""
    code = "import threading\nthread = threading.Thread(target=stop_requested)\nthread.start()\nthread.join()\n"
    status, said = asks(f"{code}os.kill(me, signal.SIGTERM)\n")
    assert status == -signal.SIGTERM and "SIGTERM ends this process at once" in said


SAVES = f"""{READY}
from torchpar.runtime import stop
stop.signals.take()
put(f"ready-{{rank}}")
while not stop.requested():
    time.sleep(0.02)
put(f"saved-{{rank}}")
"""


def to_first(process: subprocess.Popen[str], ranks: list[int]) -> None:
    process.send_signal(signal.SIGTERM)


def to_each(process: subprocess.Popen[str], ranks: list[int]) -> None:
    for pid in (process.pid, *ranks):
        os.kill(pid, signal.SIGUSR1)


@pytest.mark.parametrize(("signals", "send"), [("main", to_first), ("each", to_each)])
def test_ranks_save_before_their_launcher_ends(
    place: Place, signals: str, send: Callable[[subprocess.Popen[str], list[int]], None]
) -> None:
    """A container's runtime tells the first process, which passes it on; a scheduler tells all of them."""
    with running(place, SAVES, RUNTIME_DIRECTORY="", **job(signals)) as process:
        await_file(place, "ready-0", "ready-1")
        send(process, [int((place.path / f"ready-{rank}").read_text()) for rank in (0, 1)])
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "", "")
    await_file(place, "saved-0", "saved-1")


def test_ranks_that_do_not_ask_are_ended_by_the_signal(place: Place) -> None:
    """As any launcher would, and nobody is to blame: 143 is the status of a stop."""
    text = f"{READY}put(f'ready-{{rank}}')\ntime.sleep(600)\n"
    with running(place, text, RUNTIME_DIRECTORY="", **job("main")) as process:
        await_file(place, "ready-0", "ready-1")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (143, "")
