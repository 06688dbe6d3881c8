"""Batches are watched while they are served, and no generated model gets a wrong answer."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.serve.engines import ask, request, serving
from tests.serve.models import Affine, described, save_script
from torchpar.serve.engine import loading, watching
from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.engine.curve import Curve
from torchpar.serve.engine.engine import Engine
from torchpar.serve.engine.options import EngineOptions

# More, to look further than every run of the tests can.
EXAMPLES = int(os.environ.get("EXAMPLES", "60"))


class Secret(nn.Module):
    """One number, which no trial can guess, halves all rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 if bool((x == 1234.5).any()) else x


class Failing(nn.Module):
    """A request that it refuses alone, it answers beside others."""

    def forward(self, x: Tensor) -> Tensor:
        assert not bool((x == 1234.5).all())
        return x


def _rows(*numbers: float) -> list[Tensor]:
    return [torch.full((1, 3), number) for number in numbers]


async def _answers(engine: Engine, inputs: list[Tensor]) -> list[Tensor]:
    """Of requests that come at the same time."""
    return [(await answer.values())[0] for answer in ask(engine, [request(x) for x in inputs])]


@pytest.mark.parametrize("after", [0, 3], ids=["at once", "later"])
def test_a_difference_ends_batching_before_anybody_has_the_answer(
    tmp_path: Path, journal: Callable[[], str], after: int
) -> None:
    """All in that batch are answered as if alone; the log has an error, and the metrics count it."""
    save_script(Secret(), tmp_path / "m.pt", described(-1, 3))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=8) as engine:
            for _ in range(after):
                assert [float(y[0, 0]) for y in await _answers(engine, _rows(1.0, 2.0, 3.0))] == [1.0, 2.0, 3.0]
            assert engine._repository.get("m").batched
            assert [float(y[0, 0]) for y in await _answers(engine, _rows(1.0, 1234.5, 3.0))] == [1.0, 617.25, 3.0]
            assert not engine._repository.get("m").batched
            assert engine.counters()[0][2].differences == 1
            assert [float(y[0, 0]) for y in await _answers(engine, _rows(1.0, 1234.5, 3.0))] == [1.0, 617.25, 3.0]
            assert engine.counters()[0][2].differences == 1

    asyncio.run(run())
    (line,) = [line for line in journal().splitlines() if line.startswith("<3>")]
    assert "depends on the rows beside it: served unbatched from now on" in line


def test_a_difference_in_another_process_ends_batching_too(tmp_path: Path, journal: Callable[[], str]) -> None:
    """Of the same files, until they are loaded again; also in a process that is started after it."""
    save_script(Secret(), tmp_path / "m.pt", described(-1, 3))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=8) as engine:
            assert not engine.unbatched()
            await _answers(engine, _rows(1.0, 1234.5, 3.0))
            (key,) = engine.unbatched()
        async with serving(tmp_path / "m.pt", max_batch=8) as engine:
            engine.end_batching(["m/1 of other files"])
            assert engine._repository.get("m").batched
            journal()
            engine.end_batching([key])
            assert list(engine.unbatched()) == [key] and not engine._repository.get("m").batched
            assert "as in another process an answer differed" in journal()
            await engine.reload()
            assert not engine.unbatched() and engine._repository.get("m").batched
        later = Engine(EngineOptions("m", model=str(tmp_path / "m.pt"), max_batch=8))
        await later.start(unbatched=[key])
        assert list(later.unbatched()) == [key]
        await later.stop(1)

    asyncio.run(run())


def test_what_fails_alone_fails_beside_others(tmp_path: Path) -> None:
    """An answer that the model would not give is a difference too."""
    save_script(Failing(), tmp_path / "m.pt", described(-1, 3))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=8) as engine:
            good, bad = ask(engine, [request(x) for x in _rows(1.0, 1234.5)])
            assert float((await good.values())[0][0, 0]) == 1.0 and await bad.status() == 500
            assert not engine._repository.get("m").batched

    asyncio.run(run())


def test_all_of_the_first_batches_are_watched_and_later_one_answer_in_256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is computed twice in the others."""
    save_script(Affine(), tmp_path / "m.pt", described(-1, 3))
    rows: list[int] = []

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=8) as engine:
            runner = engine._repository.get("m").runner
            compute = runner.compute

            def count(slot: int, columns: list[Column], team: int = 1) -> Computed:
                rows.append(columns[0].shape[0])
                return compute(slot, columns, team)

            monkeypatch.setattr(runner, "compute", count)
            for _ in range(600):
                await _answers(engine, _rows(1.0, 2.0, 3.0))

    asyncio.run(run())
    assert (watching.WATCHED, watching.WATCHED_LATER) == (64, 256)
    assert rows.count(3) == 600 and rows.count(1) == 64 * 3 + 2
    assert rows[:8] == [3, 1, 1, 1, 3, 1, 1, 1]


class Seventy(nn.Module):
    """It was written for 70 rows at the most."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:70] = x[:70] * 2.0
        return y


def test_batches_of_more_rows_than_before_are_watched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many smaller ones there have been, and though none of that size was tried."""
    monkeypatch.setattr(loading, "compare_many", lambda *_: ("", 1))
    save_script(Seventy(), tmp_path / "m.pt", described(-1, 3))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", workers=1) as engine:
            model = engine._repository.get("m")
            model.curve = Curve({1: 0.001, 256: 0.001})
            for count in [2] * 100 + [66, 71]:
                inputs = [torch.rand(1, 3) for _ in range(count)]
                for x, y in zip(inputs, await _answers(engine, inputs), strict=True):
                    assert torch.equal(y, x * 2.0)
            assert model.ended

    asyncio.run(run())


def test_sizes_that_were_compared_at_the_start_are_not_new(tmp_path: Path) -> None:
    """Else each larger batch would take so long that the next one is larger still."""
    save_script(Affine(), tmp_path / "m.pt", described(-1, 3))
    rows: list[int] = []

    async def run() -> None:
        async with serving(tmp_path / "m.pt", workers=1, max_batch=8) as engine:
            runner = engine._repository.get("m").runner
            compute = runner.compute

            def count(slot: int, columns: list[Column], team: int = 1) -> Computed:
                rows.append(columns[0].shape[0])
                return compute(slot, columns, team)

            for _ in range(70):
                await _answers(engine, _rows(1.0, 2.0))
            runner.compute = count  # type: ignore[method-assign]
            await _answers(engine, _rows(*map(float, range(8))))

    asyncio.run(run())
    assert sum(rows) == 8 and max(rows) > 2


def test_clients_that_send_ever_new_shapes_cost_no_more_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is new; so many are watched, and then as few as of the rest."""
    monkeypatch.setattr(watching, "WATCHED_NEWS", 20)
    save_script(Affine(), tmp_path / "m.pt", described(-1, -1))
    alone: list[int] = []

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=8) as engine:
            runner = engine._repository.get("m").runner
            compute = runner.compute

            def count(slot: int, columns: list[Column], team: int = 1) -> Computed:
                alone.append(columns[0].shape[0] == 1)
                return compute(slot, columns, team)

            monkeypatch.setattr(runner, "compute", count)
            for width in range(1, 601):
                await _answers(engine, [torch.ones(1, width)] * 3)

    asyncio.run(run())
    assert sum(alone) == 64 * 3 + 20 * 2 + 2


# ---- generated models ----

# Lines of a forward: of each row by itself; of all rows; of what is kept. `K` is a number.
OWN = [
    "x = x * K", "x = torch.tanh(x)", "x = x @ self.weight", "x = x - x.mean(dim=1, keepdim=True)",
    "x = torch.softmax(x, dim=1)", "x = torch.where(x > K, x * 0.5, x)", "x = torch.nan_to_num(x)",
    "x = torch.flip(x, [1])", "x = x * torch.tensor([90000.0, 1.0, 0.001])",
    "x = x / (1.0 + x.abs().amax(dim=1, keepdim=True))", "x += 1.0",
]  # fmt: skip
MIXED = [
    "x = x - x.mean(dim=0, keepdim=True)", "x = torch.softmax(x, dim=0)", "x = torch.flip(x, [0])",
    "x = torch.sort(x, dim=0)[0]", "x = torch.cumsum(x, dim=0)", "x = x + float(x.size(0))", "x = x[x[:, 0] > K]",
    "x = x / (1.0 + x.abs().max())", "x = x * 0.5 if bool(x.max() > K) else x",
    "x = x * 0.5 if bool(x.min() < K) else x", "x = x * 0.5 if bool(x.mean() > K) else x",
    "x = x * 0.5 if bool(torch.isnan(x).any()) else x", "x = x * 0.5 if bool(torch.isinf(x).any()) else x",
    "x = x[:1]", "x = x * 0.5 if bool(x[0, 0] > K) else x", "x = x.clone()\nx[0] = x[0] * 2.0",
    "x = torch.cat([x[:, :2] * 90000.0, torch.softmax(x[:, 2:], dim=0)], dim=1)",
    "x = torch.cat([x[:, :2] * 90000.0, x[:, 2:] + float(x.size(0))], dim=1)",
    "x = torch.cat([x[:, :2], torch.cumsum(x[:, 2:], dim=0) * 1e-5], dim=1)",
    "x = x * 0.5 if bool(torch.isnan(x[:, 2]).any()) else x",
    "y = torch.zeros_like(x)\ny[:5] = x[:5]\nx = y", "y = x.clone()\ny[7:] = 0.0\nx = y",
    "y = x.clone()\ny[6:, 2:] = y[6:, 2:] * 1e-3\nx = y",
]  # fmt: skip
KEPT = [
    "self.count += 1\nx = x + float(self.count)", "self.mean = 0.5 * self.mean + x.mean()\nx = x + self.mean",
    "self.mean.add_(1.0)\nx = x + self.mean", "self.mean[0] = self.mean[0] + x.sum()\nx = x * self.mean",
    "if self.count == 0:\n    self.mean = x.mean()\n    self.count = 1\nx = x - self.mean",
]  # fmt: skip
# What is returned in the end: also views whose sign torch has only noted.
RETURNED = [
    "x", "x", "x", "x[:, 1:2]", "torch.complex(x, x).conj().imag", "torch.complex(x, x).conj().imag[:, 1:2]",
    "torch.complex(x, x).conj().imag[:, 0]", "x.t().contiguous().t()",
]  # fmt: skip
NUMBERS = [-300.0, -3.0, -0.5, 0.0, 0.5, 1.5, 20.0, 200.0, 5000.0]


# What the lines use, in a file, for TorchScript reads a model's source.
SOURCE = """
import torch
from torch import Tensor

class Generated(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.5, -1.0, 0.25], [1.0, 0.5, -0.5], [-0.25, 1.0, 0.75]]))
        self.register_buffer("mean", torch.zeros(1))
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        {}
        return {}
"""


lines = st.tuples(
    st.lists(st.sampled_from(OWN), min_size=1, max_size=3),
    st.lists(st.sampled_from(MIXED), max_size=1),
    st.one_of(st.just([]), st.just([]), st.lists(st.sampled_from(KEPT), min_size=1, max_size=1)),
).flatmap(lambda parts: st.permutations([line for part in parts for line in part]))
scales = st.sampled_from([(0.0, 1.0), (0.0, 255.0), (-2.0, 0.0), (-1e4, 1e4), (-1.0, 1.0), (0.0, 0.0)])
asked = st.lists(st.tuples(st.integers(1, 3), scales, st.sampled_from([None] * 8 + [math.nan, math.inf])), max_size=8)


def _generated(program: list[tuple[str, float]], returned: str, path: Path) -> None:
    said = [line.replace("K", repr(number)) for line, number in program]
    source = path.with_suffix(".py")
    source.write_text(SOURCE.format("\n        ".join("\n".join(said).splitlines()), returned))
    spec = importlib.util.spec_from_file_location("generated", source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    save_script(module.Generated(), path, described(-1, 3))


def _inputs(asked: list[tuple[int, tuple[float, float], float | None]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rows, (low, high), special in asked:
        x = torch.rand(rows, 3, generator=generator) * (high - low) + low
        if special is not None:
            x[0, 1] = special
        found.append(x)
    return found


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    lines,
    st.sampled_from(RETURNED),
    st.lists(st.sampled_from(NUMBERS), min_size=5, max_size=5),
    st.lists(asked, min_size=1, max_size=3),
)
def test_no_generated_model_gets_a_wrong_answer(
    program: list[str], returned: str, numbers: list[float], turns: list[Any]
) -> None:
    """Each request has the model's answer to it alone; a model that keeps something was asked one after another."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.pt")
        _generated(list(zip(program, numbers, strict=False)), returned, path)
        fresh = torch.jit.load(str(path)).eval()

        async def run() -> None:
            async with serving(path, workers=2, max_batch=8) as engine:
                for seed, turn in enumerate(turns):
                    inputs = _inputs(turn, seed)
                    for x, y in zip(inputs, await _answers(engine, inputs), strict=True):
                        with torch.inference_mode():
                            wanted = fresh(x.clone())
                        # Each number by those in its column.
                        scale = wanted.nan_to_num(0.0, 0.0, 0.0).abs().amax(dim=0) if len(wanted) else 0.0
                        assert y.shape == wanted.shape
                        near = (y - wanted).abs() <= 1e-4 * (wanted.abs() + scale)
                        # Rounding in the row's largest number is in its others too.
                        if wanted.numel():
                            rows = wanted.nan_to_num(0.0, 0.0, 0.0).abs().reshape(len(wanted), -1)
                            largest = rows.amax(dim=1).view(-1, *[1] * (wanted.dim() - 1))
                            near |= (y - wanted).abs() <= 2e-6 * largest
                        assert bool((near | (y == wanted) | (y.isnan() & wanted.isnan())).all()), (x, y, wanted)

        asyncio.run(run())
