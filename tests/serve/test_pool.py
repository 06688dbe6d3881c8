"""Between the event loop and the workers' threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank, make_given_json
from torchpar.contract.job import JobSettings, RankSettings, ServeSettings
from torchpar.runtime import given
from torchpar.serve.engine.pool import Pool
from torchpar.serve.following import ComputeThreads


def make_pool(slots: int, finished: Callable[[Any], None], **more: Any) -> Pool:
    """A pool whose batches need no preparation, and never expire."""
    loop = asyncio.get_running_loop()
    return Pool(slots, loop, prepare=lambda slot: None, finished=finished, expired=lambda *_: None, **more)


def test_workers_that_finish_all_the_time_leave_others_their_turn() -> None:
    """Here one batch is finished while the answers to the one before are written, without end."""

    async def run() -> None:
        def finished(batch: Any) -> None:
            nonlocal count
            count += 1
            if count < 1000:
                pool._done.append(batch)
                pool._post()

        count = 0
        pool = make_pool(1, finished)
        batch: Any = object()
        pool._done.append(batch)
        pool._post()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 1 <= count < 1000
        while count < 1000:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 300))


class Queue:
    """Requests of one row each, taken one by one."""

    def __init__(self) -> None:
        self.rows = 0

    def __bool__(self) -> bool:
        return self.rows > 0

    def put(self, waiting: Any) -> None:
        self.rows += 1

    def take(self, *arguments: Any) -> list[Any]:
        self.rows -= 1
        return [SimpleNamespace(rows=1)]


class Held:
    """A model whose batches are computed until they are let go, one by one."""

    def __init__(self) -> None:
        self.queue = Queue()
        self.curve = SimpleNamespace(parts=lambda rows, most: most)
        self.waits = self.batched = self.single = self.computes = self.cheap = self.steady = False
        self.team_from = self.runner = None
        self.go = threading.Semaphore(0)
        self.computing = self.most = 0
        self._lock = threading.Lock()

    def limit_rows(self) -> int:
        return 1

    def compute(self, slot: int, batch: Any) -> None:
        with self._lock:
            self.computing += 1
            self.most = max(self.most, self.computing)
        self.go.acquire()
        with self._lock:
            self.computing -= 1
        batch.error = None


def test_no_more_compute_at_once_than_torchpard_has_given_from_the_next_batch_on() -> None:
    async def run() -> None:
        async def wait(computing: int) -> None:
            while held.computing != computing:
                await asyncio.sleep(0.001)

        allowed, held = 2, Held()
        served: Any = held
        done: list[Any] = []
        pool = make_pool(4, done.append, allowed=lambda: allowed)
        pool.start()
        for _ in range(16):
            waiting: Any = None
            pool.put(served, waiting)
        await wait(2)
        held.go.release()
        while len(done) < 1:
            await asyncio.sleep(0.001)
        await wait(2)
        assert held.most == 2
        allowed = 4
        held.go.release()
        await wait(4)
        allowed = 1
        held.go.release()
        while pool.most != 1:
            await asyncio.sleep(0.001)
        await wait(4)  # who had finished has taken its next one before
        held.go.release(3)
        await wait(1)
        held.most = 0
        for _ in range(held.queue.rows):
            held.go.release()
            await wait(1)
        held.go.release(16)
        while len(done) < 16:
            await asyncio.sleep(0.001)
        assert held.most == 1
        # More than there are: some are lent.
        allowed, held.go = 6, threading.Semaphore(0)
        for _ in range(12):
            waiting = None
            pool.put(served, waiting)
        await wait(6)
        assert held.most == 6
        held.go.release(12)
        while len(done) < 28:
            await asyncio.sleep(0.001)
        pool.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_threads_that_cannot_be_started_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where TasksMax= is reached. It is said once, and the batches are computed by those that there are."""
    said: list[str] = []
    monkeypatch.setattr("torchpar.serve.engine.pool.say", lambda text, *_: said.append(text))

    async def run() -> None:
        held = Held()
        served: Any = held
        done: list[Any] = []
        pool = make_pool(1, done.append, allowed=lambda: 4)
        pool.start()
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "compute-3":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        held.go.release(12)
        for _ in range(12):
            waiting: Any = None
            pool.put(served, waiting)
        while len(done) < 12:
            await asyncio.sleep(0.001)
        assert pool.alive() and pool.most == 2
        pool.stop()

    asyncio.run(asyncio.wait_for(run(), 300))
    assert said == ["no more than 2 compute threads: can't start new thread"]


class Named(Held):
    """One of several, whose batches take so many seconds, as was measured."""

    def __init__(self, name: str, seconds: float, computed: list[str], *, steady: bool) -> None:
        super().__init__()
        self.name, self.steady, self.computed = name, steady, computed
        self.curve = SimpleNamespace(parts=lambda rows, most: most, seconds=lambda rows: seconds)

    def seconds(self) -> float:
        return float(self.curve.seconds(1))

    def compute(self, slot: int, batch: Any) -> None:
        self.computed.append(self.name)
        super().compute(slot, batch)


def test_models_that_wait_keep_their_turns_while_another_passes_them() -> None:
    async def run() -> None:
        computed: list[str] = []
        waiting: Any = None

        async def wait(what: Any, count: int) -> None:
            while computed.count(what) < count:
                await asyncio.sleep(0.001)

        heavy, other = (Named(name, 1.0, computed, steady=False) for name in ("heavy", "other"))
        quick = Named("quick", 0.01, computed, steady=True)
        pool = make_pool(1, lambda _: None)
        pool.start()
        for served in (heavy, quick, other):
            for _ in range(20):
                pool.put(served, waiting)  # type: ignore[arg-type]
        await wait("quick", 1)
        await wait("heavy", 1)
        for number in range(6):
            quick.go.release()
            await wait("quick", number + 2)
            last = [name for name in computed if name != "quick"][-1]
            (heavy if last == "heavy" else other).go.release()
            while computed.count("heavy") + computed.count("other") < number + 2:
                await asyncio.sleep(0.001)
        assert [name for name in computed if name != "quick"] == ["heavy", "other"] * 3 + ["heavy"]
        for served in (heavy, quick, other):
            served.go.release(40)
        while len(computed) < 60:
            await asyncio.sleep(0.001)
        pool.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


UNIT = "torchpar-infer@m.service"
SERVE = ServeSettings("/m.pt", None, (), (), None, "auto", None, None, 30, own=False)
RUN = {"INVOCATION_ID": "this run"}


@pytest.mark.parametrize(("processes", "numbers"), [(1, [3]), (2, [2, 1]), (4, [1, 1, 1, 1])])
def test_the_processes_of_a_place_divide_the_threads_that_it_has_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, numbers: list[int]
) -> None:
    monkeypatch.setattr(given, "PERIOD", 0.0)
    rank = RankSettings(0, "0-7", "0", 8, 0, ())
    job = JobSettings(UNIT, 1, None, (rank,), serve=SERVE)
    made = [
        ComputeThreads(job, rank, index=index, processes=processes, environ=RUN, folder=str(tmp_path))
        for index in range(processes)
    ]
    assert [each() for each in made] == [8 // processes] * processes
    now = (GivenRank(CpuSet.parse("0-2"), 3),)
    file = Given(UNIT, "this run", now, (GivenRank(CpuSet.parse("0-7"), 8),), 0.0)
    (tmp_path / UNIT).write_text(make_given_json(file))
    assert [each() for each in made] == numbers


def test_own_numbers_and_accelerators_stay() -> None:
    rank, gpu = RankSettings(0, "0-7", "0", 8, 0, ()), RankSettings(0, "0-7", "0", 8, 0, ("0000:17:00.0",))
    own = ServeSettings("/m.pt", None, (), (), 2, "auto", None, None, 30, own=False)
    follows = [
        ComputeThreads.may_follow(JobSettings(UNIT, 1, None, (place,), serve=serve), place)
        for place, serve in ((rank, SERVE), (rank, own), (gpu, SERVE))
    ]
    assert follows == [True, False, False]
