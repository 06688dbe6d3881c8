"""stop_requested(): who asks, what the ranks agree on, and what ExecStop= does with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from tests.unit.runtime.jobs import Place
from torchpar.runtime import stop

EXEC_STOP = Path(__file__).resolve().parents[3] / "systemd" / "torchpar-stop"


class FakeDistributed(types.ModuleType):
    """A torch.distributed whose other rank says what `others` yields: (wanted, calls to the next exchange)."""

    def __init__(self, rank: int, others: list[tuple[int, int]]) -> None:
        super().__init__("torch.distributed")
        self.rank, self.others, self.groups = rank, iter(others), 0
        self.group = types.SimpleNamespace(WORLD=object())
        self.ReduceOp = types.SimpleNamespace(MAX="max")

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return 2

    def get_rank(self) -> int:
        return self.rank

    def new_group(self, backend: str) -> str:
        self.groups += 1
        return backend

    def all_reduce(self, numbers: list[int], op: str, group: str) -> None:
        assert (op, group) == ("max", "gloo")
        numbers[:] = [max(pair) for pair in zip(numbers, next(self.others), strict=True)]


def tensor(numbers: list[int], device: str) -> list[int]:
    """gloo's numbers, so on the CPU whatever the script's default device is."""
    assert device == "cpu"
    return list(numbers)


def distributed(monkeypatch: pytest.MonkeyPatch, rank: int, others: list[tuple[int, int]]) -> FakeDistributed:
    """Put a torch there that is in use by two ranks."""
    fake = FakeDistributed(rank, others)
    torch = types.ModuleType("torch")
    torch.distributed = fake  # type: ignore[attr-defined]
    torch.__dict__["tensor"] = tensor
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.distributed", fake)
    return fake


@pytest.fixture
def request_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A process that nothing has been asked of, with a RUNTIME_DIRECTORY."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/elsewhere")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    yield stop.StopRequest()
    signal.signal(signal.SIGUSR1, before)


def test_a_process_that_is_alone_stops_when_it_is_asked(request_to_stop: stop.StopRequest, tmp_path: Path) -> None:
    """From the first call on it is known as one that can be asked, and once true it stays true."""
    assert list(tmp_path.iterdir()) == []
    assert not request_to_stop.seen_by_all()
    assert [file.name for file in tmp_path.iterdir()] == [f"stop-{os.getpid()}"]
    os.kill(os.getpid(), signal.SIGUSR1)
    assert request_to_stop.seen_by_all()
    assert request_to_stop.seen_by_all()


def test_a_rank_without_a_process_group_does_not_leave_the_others(
    request_to_stop: stop.StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wait for it; it stops as soon as it can tell them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not request_to_stop.seen_by_all()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert not request_to_stop.seen_by_all()
    fake = distributed(monkeypatch, rank=1, others=[(0, 3)])
    assert request_to_stop.seen_by_all()
    assert fake.groups == 1


def test_a_rank_stops_when_another_is_asked(
    request_to_stop: stop.StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the call at which both exchange; the first rank says when that is."""
    fake = distributed(monkeypatch, rank=1, others=[(0, 3), (0, 1), (0, 2), (1, 5)])
    answers = [request_to_stop.seen_by_all() for _ in range(8)]
    #            exchange, -, -, exchange, exchange, -, exchange
    assert answers == [False, False, False, False, False, False, True, True]
    assert list(fake.others) == [] and fake.groups == 1


def test_a_request_waits_for_the_exchange(
    request_to_stop: stop.StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank that is asked does not stop before the others know."""
    distributed(monkeypatch, rank=1, others=[(0, 3), (0, 3)])
    assert not request_to_stop.seen_by_all()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert [request_to_stop.seen_by_all() for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [(0.0, stop.MOST_CALLS_BETWEEN), (0.001, stop.MOST_CALLS_BETWEEN), (0.03, 3), (0.2, 1), (60.0, 1)],
)
def test_the_first_rank_spaces_exchanges_by_the_time_of_a_call(
    monkeypatch: pytest.MonkeyPatch, seconds: float, calls: int
) -> None:
    """Rare where calls are quick, each where they are slow."""
    fake = distributed(monkeypatch, rank=0, others=[(0, 0)] * 2)
    clock = iter([0.0, seconds, seconds])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    agreement = stop.Agreement(fake.group.WORLD)
    assert not agreement.reached(False)
    assert agreement.calls_left == calls


def stopped(place: Place, text: str, grace: str) -> tuple[int, str]:
    """Run a script until it has written a line, then ExecStop= with this grace; its status and what the stop said."""
    place.write("x.py", "import time, torchpar.runtime\nprint(torchpar.runtime.stop_requested())\n" + text)
    environ = {"PATH": os.defpath, "RUNTIME_DIRECTORY": str(place.path)}
    command = [sys.executable, "-u", str(place.launcher), "--", "x.py"]
    job = subprocess.Popen(command, cwd=place.path, env=environ, stdout=subprocess.PIPE)
    # A child that has ended stays for kill(2) until somebody waits for it, as systemd does.
    status: list[int] = []
    waiting = threading.Thread(target=lambda: status.append(job.wait()))
    try:
        assert job.stdout and job.stdout.readline() == b"False\n"
        waiting.start()
        environ["MAINPID"] = str(job.pid)
        done = subprocess.run(["sh", EXEC_STOP, grace], env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0
        waiting.join(60)
        return status[0], done.stderr
    finally:
        job.kill()
        waiting.join()
        job.stdout and job.stdout.close()


@pytest.mark.subprocess
def test_a_script_that_asks_saves_and_ends_with_its_own_status(place: Place) -> None:
    """ExecStop= waits for it."""
    text = """
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
open("saved", "w").close()
"""
    assert stopped(place, text, grace="100") == (0, "")
    assert (place.path / "saved").exists()


@pytest.mark.subprocess
@pytest.mark.parametrize("grace", ["0", "1"])
def test_a_script_that_does_not_end_in_time_gets_sigterm(place: Place, grace: str) -> None:
    """And one line says so."""
    status, said = stopped(place, "time.sleep(600)\n", grace)
    assert status == -signal.SIGTERM
    assert said == f"not ended within the {grace} s of CheckpointGrace=: SIGTERM, and SIGKILL in 10 s\n"


@pytest.mark.subprocess
def test_a_script_that_never_asked_is_left_to_systemd(place: Place) -> None:
    """ExecStop= returns at once and has sent nothing; so it does when the main process has ended by itself."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        for main in (str(process.pid), ""):
            environ = {"PATH": os.defpath, "RUNTIME_DIRECTORY": str(place.path), "MAINPID": main}
            done = subprocess.run(["sh", EXEC_STOP, "60"], env=environ, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
