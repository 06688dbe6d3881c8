"""stop_requested(): who asks, and what the ranks agree on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torchpar.runtime import stop


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The RUNTIME_DIRECTORY of a process of which nothing has been asked."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/elsewhere")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


def test_a_process_that_is_alone_stops_when_it_is_asked(place: Path) -> None:
    """From the first call on it is known as one that asks; no signal is touched, and once true it stays true."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    request = stop.StopRequest()
    assert list(place.iterdir()) == []
    assert not request.seen_by_all()
    assert [file.name for file in place.iterdir()] == [f"stop-{os.getpid()}"]
    (place / "stop").touch()
    assert request.seen_by_all()
    (place / "stop").unlink()
    assert request.seen_by_all()
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers


def test_it_can_be_asked_from_any_thread_and_without_a_service(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside a service nothing is requested and nothing left."""
    (place / "stop").touch()
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(stop.StopRequest().seen_by_all()))
    thread.start()
    thread.join()
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert [*answers, stop.StopRequest().seen_by_all()] == [True, False]


@pytest.mark.subprocess
def test_a_forked_process_asks_for_itself(place: Path) -> None:
    """It is known by its own number, and the group of ranks that it has a copy of is not its own."""
    code = """
import os, sys, types
from torchpar.runtime import stop
request = stop.StopRequest()
assert not request.seen_by_all()
stop.whole_group = None
if os.fork() == 0:
    open(os.path.join(stop.directory(), "stop"), "w").close()
    assert request.seen_by_all() and os.path.exists(os.path.join(stop.directory(), f"stop-{os.getpid()}"))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environ).returncode == 0


class Store:
    """What all ranks share: add() as torch's stores have it."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.lock = threading.Lock()
        self.broken = False

    def add(self, key: str, amount: int) -> int:
        if self.broken:
            raise RuntimeError("Broken pipe\nat a frame of C++")
        with self.lock:
            self.values[key] = self.values.get(key, 0) + amount
            return self.values[key]


class Ranks:
    """Several agreements, as of ranks that share a store; each sees a request when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, *, hosts: int = 1) -> None:
        self.store = Store()
        self.torch = types.ModuleType("torch")
        self.distributed = types.ModuleType("torch.distributed")
        c10d = types.ModuleType("torch.distributed.distributed_c10d")
        self.torch.__dict__.update(distributed=self.distributed)
        self.distributed.__dict__.update(distributed_c10d=c10d, get_world_size=lambda: count)
        c10d.__dict__.update(_get_default_store=lambda: self.store)
        for module in (self.torch, self.distributed, c10d):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count // hosts))
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.ranks = [self.join(rank) for rank in range(count)]

    def join(self, rank: int, number: int = 1) -> stop.Agreement:
        self.distributed.__dict__["get_rank"] = lambda: rank
        return stop.Agreement(object(), number)

    def calls(self, rank: int, wanted: bool, times: int) -> int | None:
        """The number of the call that was true, None if none was so often."""
        for _ in range(times):
            if self.ranks[rank].reached(wanted):
                return self.ranks[rank].calls
        return None


def test_ranks_exchange_nothing_before_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often they call, and whether the others still do."""
    ranks = Ranks(monkeypatch, 2)
    assert ranks.calls(0, False, 1000) is ranks.calls(1, False, 3) is None
    assert ranks.store.values == {}


def test_ranks_stop_at_the_same_call_whoever_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rank waits in a call: between two of them it may owe another rank a step."""
    for ahead in range(4):
        ranks = Ranks(monkeypatch, 3)
        for rank, before in enumerate((10, 10 + ahead, 9)):
            assert ranks.calls(rank, False, before) is None
        assert ranks.calls(0, True, 1) is ranks.calls(1, True, 2) is None
        assert ranks.calls(2, True, 1) is None
        # Each has logged a call: 11, 12 + ahead and 10.
        assert [ranks.calls(rank, True, 100) for rank in (2, 0, 1)] == [13 + ahead] * 3


def test_ranks_in_any_order_stop_at_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real threads that are at most a step apart, as ranks that compute together; each may be the first to see it."""
    for seed in range(20):
        ranks = Ranks(monkeypatch, 4)
        together = threading.Barrier(4, timeout=300)
        stopped: dict[int, int] = {}

        def train(rank: int, seed: int = seed, ranks: Ranks = ranks, together: threading.Barrier = together) -> None:
            for step in range(1, 200):
                together.wait()
                if ranks.ranks[rank].reached(step + (rank * 7 + seed) % 3 > 20):
                    stopped[rank] = step  # noqa: B023 - the thread ends before the next round
                    return

        threads = [threading.Thread(target=train, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(stopped) == 4 and len(set(stopped.values())) == 1, stopped


def test_a_rank_that_has_left_its_loop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds the others close the log, at the same call again; one that comes after all follows."""
    ranks = Ranks(monkeypatch, 3)
    assert ranks.calls(0, True, 50) is ranks.calls(1, True, 49) is None
    ranks.now += stop.PATIENCE + 1
    assert ranks.calls(1, True, 1) is None and ranks.calls(0, True, 1) == 51
    assert ranks.calls(1, True, 5) == 51 and ranks.calls(2, True, 60) == 51


def test_a_rank_far_behind_stops_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops that are not coupled: to come to the call of the others would take it for ever."""
    ranks = Ranks(monkeypatch, 2)
    assert ranks.calls(0, False, 10000) is ranks.calls(1, False, 5) is None
    assert ranks.calls(0, True, 1) is ranks.calls(1, True, 3) is None
    ranks.now += stop.PATIENCE + 1
    assert ranks.calls(1, True, 1) == 9 and ranks.calls(0, True, 1) == 10002


def test_ranks_of_another_host_hear_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is on one host only, so they look at the log from time to time."""
    ranks = Ranks(monkeypatch, 2, hosts=2)
    assert ranks.calls(0, False, 20) is ranks.calls(1, False, 20) is None
    assert ranks.calls(0, True, 1) is None and ranks.calls(1, False, 1) is None
    ranks.now += stop.PAUSE
    assert ranks.calls(1, False, 1) is None and ranks.calls(0, True, 9) == ranks.calls(1, False, 9) == 23


def test_a_new_group_counts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged for the one before does not count."""
    ranks = Ranks(monkeypatch, 2)
    assert ranks.calls(0, True, 7) is None
    ranks.ranks = [ranks.join(rank, number=2) for rank in range(2)]
    assert ranks.calls(1, True, 1) is ranks.calls(0, True, 1) is None
    assert ranks.calls(0, True, 1) == ranks.calls(1, True, 1) == 2


def test_a_store_that_is_gone_stops_a_rank_only_when_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process that holds it has ended; a run that nobody stops goes on."""
    ranks = Ranks(monkeypatch, 2, hosts=2)
    ranks.store.broken = True
    assert ranks.calls(0, False, 10) is None and ranks.calls(0, True, 1) == 11
    assert capfd.readouterr().err == "torchpar: stopping without the other ranks: Broken pipe\n"


@pytest.fixture
def in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Lets torch.distributed be in use by two ranks, from a call on."""
    ranks = Ranks(monkeypatch, 2)
    ranks.distributed.__dict__.update(
        is_available=lambda: True,
        is_initialized=lambda: False,
        get_rank=lambda: 0,
        group=types.SimpleNamespace(WORLD=object()),
    )
    yield lambda: ranks.distributed.__dict__.update(is_initialized=lambda: True)


def test_a_rank_without_a_process_group_does_not_leave_the_others(
    place: Path, monkeypatch: pytest.MonkeyPatch, in_use: Callable[[], None]
) -> None:
    """They would wait for it; it stops with them as soon as it can tell them. Its count begins with the group."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    request = stop.StopRequest()
    (place / "stop").touch()
    assert not request.seen_by_all()
    in_use()
    assert not request.seen_by_all()
    assert request.agreement and request.agreement.calls == 1
