"""Batched only while proven: what a trial finds of a model before it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.serve.engines import serving
from tests.serve.models import Affine, Lookup, described, mlp, save_script
from torchpar.serve.engine.curve import Curve
from torchpar.serve.engine.probe import compare_many, try_model
from torchpar.serve.engine.rows import Part, bytes_of, cut, difference, odd_rows, only
from torchpar.serve.models.files import ModelFile
from torchpar.serve.models.kinds import load_program
from torchpar.serve.protocol.triton import model_config
from torchpar.serve.runners.runner import ThreadRunner
from torchpar.serve.tensors import Tensor as Wire


class Autoscale(nn.Module):
    """Pictures of bytes are divided, by the largest number of all."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 255.0 if bool(x.max() > 1.5) else x


class Centred(nn.Module):
    """Pictures of numbers from 0 on are moved, by the smallest number of all."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 if bool(x.min() >= 0) else x


class Cleaned(nn.Module):
    """One number that is none, and all of them are zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0 if bool(torch.isnan(x).any()) else x


class Clipped(nn.Module):
    """Infinite numbers become the largest of all."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.isinf(x), x[torch.isfinite(x)].max(), x)


class OneScale(nn.Module):
    """Rounded in steps of the largest number, as dynamic quantisation does."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().max() / 127.0
        return torch.round(x / step) * step


class BySize(nn.Module):
    """The number of rows is in the answer."""

    def forward(self, x: Tensor) -> Tensor:
        return x + float(x.size(0))


class BySizeALittle(nn.Module):
    """The number of rows is in the answer, at the size of what 16 bits lose."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * float(x.size(0))


class SmallBesideLarge(nn.Module):
    """Places in a large picture, and how sure they are: by all rows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sigmoid(x[:, :2]) * 90000.0, torch.softmax(x[:, 2:], dim=0)], dim=1)


class SmallestBesideLargest(nn.Module):
    """A time of day in seconds since 1970, and what neighbours make of the last digits of another column."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1] * 0.0 + 1.7e9, x[:, 1:2] * 1e-3, x[:, 2:] * 1e-6 + x.mean() * 1e-9], dim=1)


class CountBesideLarge(nn.Module):
    """The number of rows is in one column, which is small beside another."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sigmoid(x[:, :2]) * 90000.0, x[:, 2:] + float(x.size(0))], dim=1)


class TinyInfluence(nn.Module):
    """Neighbours move the last digits."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-6 * x.mean()


class OneColumnCleaned(nn.Module):
    """What is no number in the last column alone makes all of it zero."""

    def forward(self, x: Tensor) -> Tensor:
        broken = bool(torch.isnan(x[:, 2]).any()) and not bool(torch.isnan(x[:, 0]).any())
        return x * 0.0 if broken else x


class Hundred(nn.Module):
    """It was written for a hundred rows at the most; the rest are not computed, in the column that is small."""

    def forward(self, x: Tensor) -> Tensor:
        score = torch.zeros(x.size(0), 1)
        score[:100] = torch.sigmoid(x[:100, 2:])
        return torch.cat([x[:, :2] * 90000.0, score], dim=1)


class Chosen(nn.Module):
    """Only some rows have an answer."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x.sum(dim=1) > -1.5]


class LongWords(nn.Module):
    """Beyond so many words the smaller ones count less."""

    def forward(self, index: Tensor) -> Tensor:
        return index * 2 if bool(index.max() > 500) else index


class Noise(nn.Module):
    """Another answer each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Waves(nn.Module):
    """Its rows are its own, but what is large has no digit to lose."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(3, 64)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(self.layer(x)))  # type: ignore[no-any-return]


class Far(nn.Module):
    """Its columns are of very different scale, and each row its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(width=512)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return torch.cat([y * 1e9, y, y * 1e-9, y.relu() * 1e-3, y - y], dim=1)


class Half(nn.Module):
    """It computes in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = mlp(width=512).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.to(torch.bfloat16)).to(torch.float32)  # type: ignore[no-any-return]


X3 = described(-1, 3)


def _file(module: nn.Module, path: Path) -> ModelFile:
    return ModelFile("m", "1", str(save_script(module, path, X3)), None)


def largest_batch(path: Path) -> int:
    """0 where the engine does not batch."""

    async def run() -> int:
        async with serving(path) as engine:
            return int(model_config(engine.metadata("m"))["max_batch_size"])

    return asyncio.run(run())


MIXED = [
    (Autoscale(), "FP32"), (Centred(), "FP32"), (Cleaned(), "FP32"), (Clipped(), "FP32"), (OneScale(), "FP32"),
    (SmallBesideLarge(), "FP32"), (SmallestBesideLargest(), "FP32"), (CountBesideLarge(), "FP32"),
    (TinyInfluence(), "FP32"), (OneColumnCleaned(), "FP32"),
    (BySize(), "FP32"), (BySizeALittle(), "FP32"), (Chosen(), "FP32"), (LongWords(), "INT64"), (Noise(), "FP32"),
]  # fmt: skip
OWN = [
    (Affine(), "FP32"), (mlp(), "FP32"), (mlp(width=2048), "FP32"), (Waves(), "FP32"), (Half(), "FP32"),
    (Far(), "FP32"), (Affine(), "BF16"), (Lookup(), "INT64"), (nn.Softmax(dim=1), "FP32"), (nn.LayerNorm(3), "FP32"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "datatype"), MIXED, ids=lambda value: type(value).__name__)
def test_a_decision_for_all_rows_is_found(tmp_path: Path, module: nn.Module, datatype: str) -> None:
    """By rows of another scale, by what is no number, by the number of rows."""
    save_script(module, tmp_path / "m.pt", described(-1, 3, datatype=datatype))
    assert largest_batch(tmp_path / "m.pt") == 0


@pytest.mark.parametrize(("module", "datatype"), OWN, ids=lambda value: type(value).__name__)
def test_rounding_is_not_taken_for_a_decision(tmp_path: Path, module: nn.Module, datatype: str) -> None:
    """Kernels sum in another order for another number of rows, and a large number makes much of it."""
    save_script(module, tmp_path / "m.pt", described(-1, 3, datatype=datatype))
    assert largest_batch(tmp_path / "m.pt") > 1


def test_batches_as_large_as_they_will_be_are_tried(tmp_path: Path) -> None:
    """A limit that a model has is found at the first size beyond it."""
    limited = ThreadRunner(lambda: load_program(_file(Hundred(), tmp_path / "m.pt")))
    sample = try_model(limited).sample
    assert sample and compare_many(limited, sample, [2, 64, 100]) == ("", 100)
    reason, compared = compare_many(limited, sample, [2, 64, 128])
    assert reason.startswith("in a batch of 128 rows output 'OUTPUT__0' of a row") and compared == 64
    exact = ThreadRunner(lambda: load_program(_file(Far(), tmp_path / "n.pt")))
    assert compare_many(exact, sample, [2**i for i in range(1, 11)]) == ("", 1024)


def test_what_an_earlier_start_has_measured_is_tried_at_each(tmp_path: Path) -> None:
    """A batch may have so many rows from the first request on."""
    path = save_script(Hundred(), tmp_path / "m.pt", X3)

    async def run() -> int:
        async with serving(path, state=str(tmp_path)) as engine:
            engine._repository.get("m").curve = Curve({1: 0.001, 256: 0.001})
        async with serving(path, state=str(tmp_path)) as engine:
            assert engine._repository.get("m").curve.cap == 256
            return int(model_config(engine.metadata("m"))["max_batch_size"])

    assert asyncio.run(run()) == 0


PIECES = """
INPUTS = [("text", "BYTES", (-1,))]
OUTPUTS = [("piece", "BYTES", (-1,))]

def load():
    pass

def example():
    return {{"text": [b"It rains"]}}

def predict(batch):
    return {{"piece": [piece for text in batch["text"] for piece in text.decode().split({by!r}) if piece.strip()]}}
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("by", [".", ",", "\n", "\t", ";", "|"])
def test_a_handler_that_returns_what_it_finds_is_unbatched(
    tmp_path: Path, by: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own example has one piece. What it raises about a made-up text is not in the log."""
    (tmp_path / "m.py").write_text(PIECES.format(by=by))
    assert largest_batch(tmp_path / "m.py") == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.subprocess
def test_a_handler_with_a_row_for_each_text_is_batched(tmp_path: Path) -> None:
    """However long they are."""
    text = PIECES.format(by=".").replace('[piece for text in batch["text"] for piece', '[text.upper() for text')
    (tmp_path / "m.py").write_text(text.partition(" in text.decode()")[0] + ' in batch["text"]]}\n')
    assert largest_batch(tmp_path / "m.py") > 1


def _wire(*rows: tuple[float, ...], name: str = "y") -> Wire:
    value = torch.tensor(rows)
    return Wire(name, "FP32", tuple(value.shape), value.numpy().tobytes())


BIG = (90000.0, 0.5)


@pytest.mark.parametrize(
    ("alone", "part", "again", "longer", "differs"),
    [
        ((1.0, 100.0), (1.0, 100.00001), (1.0, 100.00001), None, False),
        ((1.0, 100.0), (1.0, 100.00001), (1.0, 100.0), None, True),
        ((1.0, 100.0), (1.5, 100.0), (1.5, 100.0), (1.50001, 100.0), False),
        ((1.0, 100.0), (1.5, 100.0), (1.0, 100.0), None, True),
        ((1.0, 100.0), (1.5, 100.0), (1.5, 100.0), (2.0, 100.0), True),
        ((1.0, 100.0), (50.0, 100.0), None, None, True),
        ((float("nan"), 1.0), (float("nan"), 1.0), None, None, False),
        ((float("nan"), 1.0), (0.0, 1.0), None, None, True),
        ((float("inf"), 1.0), (float("inf"), 1.0), None, None, False),
        ((float("inf"), 1.0), (-float("inf"), 1.0), None, None, True),
        ((0.0, 0.0), (0.0, 1e-9), (0.0, 0.0), None, True),
        ((0.0, 0.0), (0.0, 1e-9), (0.0, 1e-9), (0.0, 1e-9), False),
        ((0.0, 0.0), (0.0, 1e-3), None, None, True),
        (BIG, (90000.0, 0.25), (90000.0, 0.5), None, True),
    ],
    ids=[
        "digits", "a neighbour's digits", "the shape's", "a neighbour's", "their number's", "too much", "NaN", "no NaN",
        "infinite", "minus", "nearly zero", "zero alone", "not zero", "a neighbour's beside a large one",
    ],  # fmt: skip
)
def test_two_answers_are_the_same_row_or_not(
    alone: tuple[float, ...],
    part: tuple[float, ...],
    again: tuple[float, ...] | None,
    longer: tuple[float, ...] | None,
    differs: bool,
) -> None:
    """What is not the same to the bit is asked again in a batch of this shape, and what is more in a longer one."""

    def ask(more: int) -> list[Wire]:
        answer = (again, longer)[more]
        assert answer is not None
        return [_wire(answer)]

    assert bool(difference([Part([_wire(alone)], [_wire(part)], ask)])) == differs


@pytest.mark.parametrize(
    ("part", "longer", "differs"),
    [
        ((90000.0, 0.5), None, False),
        ((90000.01, 0.5), (90000.01, 0.5), False),
        ((90000.0, 0.0), None, True),
        ((90000.0, 0.0001), None, True),
        ((89000.0, 0.6), (89000.0, 0.6), False),
    ],
    ids=["same", "digits", "nothing", "nearly nothing", "as coarse as the others"],
)
def test_a_small_number_is_measured_by_its_column(
    part: tuple[float, ...], longer: tuple[float, ...] | None, differs: bool
) -> None:
    """As far as the large ones beside it are exact."""
    rows = [part, BIG, BIG, BIG]

    def ask(more: int) -> list[Wire]:
        answer = (part, longer)[more]
        assert answer is not None
        return [_wire(answer)]

    assert bool(difference([Part([_wire(BIG)], [_wire(part)], ask)], [_wire(*rows)])) == differs


def test_the_kernels_of_accelerators_are_anew_for_each_number_of_rows() -> None:
    """So a longer batch tells nothing there, and is not asked for."""
    asked = []

    def ask(more: int) -> list[Wire]:
        asked.append(more)
        return [_wire((1.5, 100.0))]

    part = Part([_wire((1.0, 100.0))], [_wire((1.5, 100.0))], ask)
    assert difference([part], kind="KIND_GPU") == "" and asked == [0]


def test_what_accelerators_add_up_in_any_order_is_no_neighbours_doing() -> None:
    """The same batch has other last digits each time."""
    digits = iter([1.00001, 1.00002, 1.00003])
    part = Part([_wire((1.0, 100.0))], [_wire((1.0, 100.0001))], lambda _: [_wire((next(digits), 100.0))])
    assert difference([part], kind="KIND_GPU") == ""


def test_every_column_is_no_number_once() -> None:
    """And all at once; of many columns some are."""
    for columns in (1, 3, 5, 100):
        odd = odd_rows([_wire((1.0,) * columns)], indices=True)
        rows = [torch.frombuffer(bytearray(row.data), dtype=torch.float32) for (row,) in odd]  # type: ignore[arg-type]
        seen = {tuple(row.isnan().nonzero().flatten().tolist()) for row in rows}
        assert {(), (0,), (columns - 1,), tuple(range(columns))} <= seen
        assert columns > 8 or {(place,) for place in range(columns)} <= seen


def test_a_batch_is_filled_with_rows_where_they_stand() -> None:
    """From some place on, and nothing else around them; with a row less they may have to stand earlier."""
    for start in range(7):
        for more, most, size in ((0, None, 9), (1, None, 10), (1, 10, 10), (1, 9, 8)):
            (whole,), place = only([_wire((1.0,), (2.0,), (3.0,))], start, 9, more, most)
            assert bytes_of(cut(whole, place, place + 3)) == bytes_of(_wire((1.0,), (2.0,), (3.0,)))
            assert whole.shape == (size, 1) and (place == start or (start, size) == (6, 8))
