"""Batched only while proven: what a trial finds of a model before it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.serve.engines import serving
from tests.serve.models import Affine, Lookup, described, mlp, save_script
from torchpar.serve.rows import bytes_of, cut, difference, only
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


class Half(nn.Module):
    """It computes in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = mlp(width=512).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.to(torch.bfloat16)).to(torch.float32)  # type: ignore[no-any-return]


def largest_batch(path: Path) -> int:
    """0 where the engine does not batch."""

    async def run() -> int:
        async with serving(path) as engine:
            return int(engine.config("m")["max_batch_size"])

    return asyncio.run(run())


MIXED = [
    (Autoscale(), "FP32"), (Centred(), "FP32"), (Cleaned(), "FP32"), (Clipped(), "FP32"), (OneScale(), "FP32"),
    (BySize(), "FP32"), (BySizeALittle(), "FP32"), (Chosen(), "FP32"), (LongWords(), "INT64"), (Noise(), "FP32"),
]  # fmt: skip
OWN = [
    (Affine(), "FP32"), (mlp(), "FP32"), (mlp(width=2048), "FP32"), (Waves(), "FP32"), (Half(), "FP32"),
    (Affine(), "BF16"), (Lookup(), "INT64"), (nn.Softmax(dim=1), "FP32"), (nn.LayerNorm(3), "FP32"),
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


def _wire(*numbers: float, name: str = "y") -> Wire:
    value = torch.tensor(numbers).reshape(-1, 1)
    return Wire(name, "FP32", tuple(value.shape), value.numpy().tobytes())


@pytest.mark.parametrize(
    ("alone", "part", "again", "longer", "differs"),
    [
        ((1.0, 100.0), (1.0, 100.00001), None, None, False),
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
    ],
    ids=[
        "digits", "the shape's", "a neighbour's", "their number's", "too much", "NaN", "no NaN", "infinite", "minus",
        "nearly zero", "zero alone", "not zero",
    ],  # fmt: skip
)
def test_two_answers_are_the_same_row_or_not(
    alone: tuple[float, ...],
    part: tuple[float, ...],
    again: tuple[float, ...] | None,
    longer: tuple[float, ...] | None,
    differs: bool,
) -> None:
    """The last digits are the kernels'; what is more is asked again in a batch of this shape, and in a longer one."""

    def ask(more: int) -> list[Wire]:
        answer = (again, longer)[more]
        assert answer is not None
        return [_wire(*answer)]

    assert bool(difference([_wire(*alone)], [_wire(*part)], ask)) == differs


def test_the_kernels_of_accelerators_are_anew_for_each_number_of_rows() -> None:
    """So a longer batch tells nothing there, and is not asked for."""
    asked = []

    def ask(more: int) -> list[Wire]:
        asked.append(more)
        return [_wire(1.5, 100.0)]

    assert difference([_wire(1.0, 100.0)], [_wire(1.5, 100.0)], ask, "KIND_GPU") == "" and asked == [0]


def test_a_batch_is_filled_with_rows_where_they_stand() -> None:
    """From some place on, and nothing else around them; with a row less they may have to stand earlier."""
    for start in range(7):
        for more, most, size in ((0, None, 9), (1, None, 10), (1, 10, 10), (1, 9, 8)):
            (whole,), place = only([_wire(1.0, 2.0, 3.0)], start, 9, more, most)
            assert bytes_of(cut(whole, place, place + 3)) == bytes_of(_wire(1.0, 2.0, 3.0))
            assert whole.shape == (size, 1) and (place == start or (start, size) == (6, 8))
