"""Where one thread computes: cheap models on the event loop's own, and so not behind slow ones."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.engines import Answer, ask_for_a_moment, request, serving
from tests.serve.models import Counter, Slow, Total, described, mlp, save_script
from torchpar.serve.engine import pool
from torchpar.serve.engine.curve import Curve
from torchpar.serve.engine.engine import Engine

ROWS = described(-1, 3)


def watch(engine: Engine, model: str = "m") -> tuple[Any, list[str]]:
    """What serves a model, and the threads that compute it from now on."""
    served = engine._repository.get(model)
    names: list[str] = []
    compute = served.runner.compute

    def watched(*arguments: Any) -> Any:
        names.append(threading.current_thread().name)
        return compute(*arguments)

    served.runner.compute = watched  # type: ignore[method-assign]
    served.watch.choose = lambda *_: ()  # type: ignore[method-assign]
    return served, names


@pytest.mark.parametrize(("workers", "where"), [(1, {"MainThread"}), (2, {"compute-0", "compute-1"})])
def test_a_cheap_model_is_computed_without_another_thread_where_there_is_one(
    tmp_path: Path, workers: int, where: set[str]
) -> None:
    """Requests of one turn in one batch, as ever."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)

    async def run() -> list[str]:
        async with serving(tmp_path / "m.pt", workers=workers) as engine:
            served, names = watch(engine)
            served.cheap = True
            answers = [Answer(engine, request(torch.randn(1, 3))) for _ in range(4)]
            for answer in answers:
                await answer.values()
            assert served.statistics.batches <= workers
            return names

    assert set(asyncio.run(run())) <= where


def test_a_fast_model_does_not_wait_for_a_slow_one(tmp_path: Path) -> None:
    """Here the slow one is not done before the fast one has answered a hundred times."""
    for name in ("fast", "slow"):
        (tmp_path / name / "1").mkdir(parents=True)
        save_script(mlp(), tmp_path / name / "1/model.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path) as engine:
            fast, slow = (engine._repository.get(name) for name in ("fast", "slow"))
            fast.cheap, slow.cheap = True, False
            compute, done = slow.runner.compute, threading.Event()

            def wait(*arguments: Any) -> Any:
                assert done.wait(300)
                return compute(*arguments)

            slow.runner.compute = wait  # type: ignore[method-assign]
            waiting = [Answer(engine, request(torch.randn(1, 3), model="slow")) for _ in range(3)]
            for _ in range(100):
                await Answer(engine, request(torch.randn(1, 3), model="fast")).values()
            done.set()
            for answer in waiting:
                await answer.values()

    asyncio.run(run())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_model_that_is_not_cheap_does_not_wait_for_much_slower_ones(tmp_path: Path, workers: int) -> None:
    """All threads have a batch of the slow one; it is not done before the other has answered a hundred times."""
    for name in ("fast", "slow"):
        (tmp_path / name / "1").mkdir(parents=True)
        save_script(mlp(), tmp_path / name / "1/model.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path, workers=workers) as engine:
            (fast, names), (slow, _) = watch(engine, "fast"), watch(engine, "slow")
            fast.cheap = slow.cheap = False
            fast.curve, slow.curve = Curve({1: 0.01}, 1), Curve({1: 0.5}, 1)
            compute, begun, done = slow.runner.compute, threading.Semaphore(0), threading.Event()

            def wait(*arguments: Any) -> Any:
                begun.release()
                assert done.wait(300)
                return compute(*arguments)

            slow.runner.compute = wait
            waiting = [Answer(engine, request(torch.randn(1, 3), model="slow")) for _ in range(workers + 2)]
            for _ in range(workers):
                assert await asyncio.to_thread(begun.acquire, timeout=300)
            for _ in range(100):
                await Answer(engine, request(torch.randn(1, 3), model="fast")).values()
            assert set(names) == {f"compute-{workers}"}
            assert not begun.acquire(blocking=False)  # nor does the slow one get more threads than there are
            done.set()
            for answer in waiting:
                await answer.values()

    asyncio.run(run())


def test_what_is_as_slow_waits_for_its_turn(tmp_path: Path) -> None:
    """And so does what may not be computed by any thread: no more than planned compute at the same time."""
    for name in ("one", "other"):
        (tmp_path / name / "1").mkdir(parents=True)
        save_script(mlp(), tmp_path / name / "1/model.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path) as engine:
            (one, names), (other, _) = watch(engine, "one"), watch(engine, "other")
            one.cheap = other.cheap = False
            compute, begun, done = other.runner.compute, threading.Event(), threading.Event()

            def wait(*arguments: Any) -> Any:
                begun.set()
                assert done.wait(300)
                return compute(*arguments)

            other.runner.compute = wait
            for seconds, steady in ((0.1, True), (0.001, False)):
                one.curve, other.curve, one.steady = Curve({1: seconds}, 1), Curve({1: 0.5}, 1), steady
                begun.clear()
                done.clear()
                slow = Answer(engine, request(torch.randn(1, 3), model="other"))
                assert await asyncio.to_thread(begun.wait, 300)
                quick = Answer(engine, request(torch.randn(1, 3), model="one"))
                for _ in range(9):
                    await asyncio.sleep(0.01)
                assert not names
                done.set()
                await slow.values()
                await quick.values()
                assert names == ["compute-0"]
                names.clear()

    asyncio.run(run())


def test_a_model_that_takes_longer_than_it_was_measured_goes_to_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for it meanwhile is answered there."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)
    monkeypatch.setattr(pool, "DEAR_SECONDS", 0.0)

    async def run() -> list[str]:
        async with serving(tmp_path / "m.pt", max_batch=1) as engine:
            served, names = watch(engine)
            served.cheap = True
            for answer in [Answer(engine, request(torch.randn(1, 3))) for _ in range(3)]:
                await answer.values()
            return names

    assert asyncio.run(run()) == ["MainThread", "compute-0", "compute-0"]


def test_the_answers_that_are_computed_alone_too_make_no_model_dear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first all are, which takes as long as many batches; here the clock goes on with each computation."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)

    async def run() -> bool:
        async with serving(tmp_path / "m.pt") as engine:
            served, names = watch(engine)
            served.cheap = True
            served.watch.choose = lambda requests, *_: range(requests)  # type: ignore[method-assign]
            monkeypatch.setattr(time, "thread_time", lambda: 0.7 * pool.DEAR_SECONDS * len(names))
            for answer in [Answer(engine, request(torch.randn(1, 3))) for _ in range(4)]:
                await answer.values()
            assert len(names) > 4
            return bool(served.cheap)

    assert asyncio.run(run())


def test_one_request_of_many_rows_goes_to_the_thread(tmp_path: Path) -> None:
    """It takes as long as many batches."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)

    async def run() -> list[str]:
        async with serving(tmp_path / "m.pt") as engine:
            served, names = watch(engine)
            served.cheap, served.curve.cap = True, 4
            for rows in (2, 100, 1):
                await Answer(engine, request(torch.randn(rows, 3))).values()
            return names

    assert asyncio.run(run()) == ["MainThread", "compute-0", "MainThread"]


class Centred(torch.nn.Module):
    """Each row without the mean of all rows, so that none may share a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("module", "rows"),
    [(mlp(), [20000, 1, 1, 1]), (Centred(), [8, 8, 8, 8]), (Counter(), [3, 3, 3, 3]), (mlp(), [1, 20000, 1, 20000, 1])],
    ids=["batched", "unbatched", "one at a time", "between others"],
)
def test_what_waits_behind_a_request_of_many_rows_is_answered(
    tmp_path: Path, module: torch.nn.Module, rows: list[int]
) -> None:
    """No further request comes, with which the server would look at its queues again."""
    save_script(module, tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            engine._repository.get("m").cheap = True
            for answer in [Answer(engine, request(torch.randn(count, 3))) for count in rows]:
                await answer.values()

    asyncio.run(run())


def test_a_request_of_many_rows_waits_for_the_thread(tmp_path: Path) -> None:
    """Here it is busy with another one until the event loop has had a hundred turns, in which it answers others."""
    for name in ("m", "other"):
        (tmp_path / name / "1").mkdir(parents=True)
        save_script(mlp(), tmp_path / name / "1/model.pt", ROWS)

    async def run() -> list[str]:
        async with serving(tmp_path) as engine:
            served, names = watch(engine)
            engine._repository.get("other").cheap = served.cheap = True
            served.curve.cap = 4
            compute, done = served.runner.compute, threading.Event()

            def wait(*arguments: Any) -> Any:
                assert threading.current_thread() is threading.main_thread() or done.wait(300)
                return compute(*arguments)

            served.runner.compute = wait  # type: ignore[method-assign]
            first = Answer(engine, request(torch.randn(100, 3)))
            await Answer(engine, request(torch.randn(1, 3), model="other")).values()
            cancelled = Answer(engine, request(torch.randn(1, 3)))
            overdue = ask_for_a_moment(engine, request(torch.randn(1, 3)))
            answers = [first, *(Answer(engine, request(torch.randn(100, 3))) for _ in range(2))]
            cancelled.ticket.cancel()
            time.sleep(0.5)
            for _ in range(100):
                await Answer(engine, request(torch.randn(1, 3), model="other")).values()
            done.set()
            for answer in answers:
                await answer.values()
            assert await overdue.status() == 504
            return names

    assert asyncio.run(run()) == ["compute-0"] * 3


@pytest.mark.parametrize(
    ("module", "shape", "steady"),
    [(mlp(), (-1, 3), True), (Slow(), (-1, 1), False), (Total(), (-1, -1), False)],
    ids=["rows of one size", "a loop", "rows of any size"],
)
def test_only_what_takes_as_long_for_every_row_is_cheap(
    tmp_path: Path, module: torch.nn.Module, shape: tuple[int, ...], steady: bool
) -> None:
    """What it took at the start tells nothing of others."""
    save_script(module, tmp_path / "m.pt", described(*shape))

    async def run() -> bool:
        async with serving(tmp_path / "m.pt") as engine:
            return engine._repository.get("m").runner.is_steady()

    assert asyncio.run(run()) is steady
