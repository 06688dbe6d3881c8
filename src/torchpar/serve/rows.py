"""Rows: cut, repeated, made up, and compared as answers to the same question.

Kernels choose their way of summing by the shape, so a row's answer in a batch is not the same to the last digit as
alone. Another row's influence is told from that in steps: what is beyond the tolerance is asked once more, in a batch
of the same shape that holds nothing else. There the kernels do the same, to the bit, and only the neighbours are
others. Then in one with a row more: kernels that are not for a single row do nearly the same, and what counts its rows
does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from torchpar.serve.models.values import DTYPES, tensor_of
from torchpar.serve.tensors import SIZES, Tensor

# Of the largest number in an output: what no kernel's other order of summing exceeds. Other datatypes are exact.
TOLERANCE = {"FP64": 1e-9, "FP32": 1e-4, "FP16": 2e-2, "BF16": 5e-2}
# What rounding to 16 bits within, or an ill-conditioned model, may make of it at the most.
COARSE = 2e-2

# Texts of no, one and several pieces, whatever pieces are: words, sentences, lines, fields, entries, numbers.
TEXTS = (
    b"",
    b"a",
    b"It rains. It pours! Who knows?\nA line, and more; some | end\tof it.",
    b"12.5",
    b"[]",
    b"[1, 2, 3]",
    "zwölf\n\nBoxkämpfer".encode(),
)


def cut(tensor: Tensor, start: int, end: int) -> Tensor:
    """Some rows of a tensor."""
    per_row = math.prod(tensor.shape[1:]) * (SIZES[tensor.datatype] or 1)
    data: Any = tensor.data
    return Tensor(tensor.name, tensor.datatype, (end - start, *tensor.shape[1:]), data[start * per_row : end * per_row])


def repeat(tensor: Tensor, rows: int) -> Tensor:
    """So many rows, those of a tensor again and again."""
    have, data = tensor.shape[0], tensor.data
    times = -(-rows // have)
    whole = data * times if isinstance(data, list) else bytes(data) * times
    return cut(Tensor(tensor.name, tensor.datatype, (have * times, *tensor.shape[1:]), whole), 0, rows)


def only(
    rows: Sequence[Tensor], start: int, size: int, more: int = 0, most: int | None = None
) -> tuple[list[Tensor], int]:
    """A batch of `size` rows that has some from `start` on, and nothing but them before and after; and that start.

    more = 1: of a row more, or one less where a batch has `most`; the start may have to be an earlier one then.
    """
    have = rows[0].shape[0]
    size += more if most is None or size + more <= most else -more
    start = min(start, size - have)
    skip = -start % have
    return [cut(repeat(tensor, size + have), skip, skip + size) for tensor in rows], start


def difference(
    alone: Sequence[Tensor], part: Sequence[Tensor], again: Callable[[int], Sequence[Tensor]], kind: str = "KIND_CPU"
) -> str:
    """What is another in the part of a batch's answer, in words; "" if it is the answer alone.

    again computes the part once more, in a batch of no other rows: 0 with as many of them, 1 with one more (or one
    less, where the model takes no more). That tells nothing on accelerators (`kind`), whose kernels are chosen anew for
    each number of rows.
    """
    if [tensor.name for tensor in alone] != [tensor.name for tensor in part]:
        return "the outputs are others"
    doubtful = ""
    for one, other in zip(alone, part):
        if one.datatype != other.datatype or one.shape != other.shape:
            return f"output '{one.name}' has shape {list(one.shape)} alone, and in a batch {list(other.shape)}"
        by, tolerance = _distance(one, other), TOLERANCE.get(one.datatype, 0.0)
        if by > max(COARSE, tolerance):
            return f"output '{one.name}' of a row depends on the rows beside it"
        if by > tolerance:
            doubtful = one.name
    if doubtful and any(bytes_of(one) != bytes_of(other) for one, other in zip(again(0), part)):
        return f"output '{doubtful}' of a row depends on the rows beside it"
    if kind != "KIND_CPU":
        return ""
    if doubtful and any(_distance(one, other) > TOLERANCE.get(one.datatype, 0.0) for one, other in zip(part, again(1))):
        return f"output '{doubtful}' of a row depends on how many rows are beside it"
    return ""


def bytes_of(tensor: Tensor) -> Any:
    """What two tensors must have in common to be the same to the bit."""
    return tensor.data if isinstance(tensor.data, list) else bytes(tensor.data)


def odd_rows(sample: Sequence[Tensor], indices: bool) -> Iterator[tuple[Tensor, ...]]:
    """Rows like one that the model takes, each unlike it in one input, or in all of a kind: see `_odd`.

    indices tells whether whole numbers may be beyond what a table has.
    """
    odd = [list(_odd(tensor, seed, indices)) for seed, tensor in enumerate(sample)]
    for place in range(max(map(len, odd), default=0)):
        for i, found in enumerate(odd):
            if place < len(found):
                yield tuple(found[place] if j == i else tensor for j, tensor in enumerate(sample))
        if len(odd) > 1:
            yield tuple(found[place] if place < len(found) else one for found, one in zip(odd, sample))


def _odd(tensor: Tensor, seed: int, indices: bool) -> Iterator[Tensor]:
    """One row of other scales, in an order that puts first what models most often ask about their numbers."""
    shape = tensor.shape
    count = math.prod(shape)
    if tensor.datatype == "BYTES":
        own: Any = tensor.data
        joined = [[text + b" " + text for text in own], [text[: len(text) // 2] for text in own]]
        for texts in ([[text] * count for text in TEXTS], joined):
            for data in texts:
                yield Tensor(tensor.name, "BYTES", shape, data)
        return
    dtype = DTYPES[tensor.datatype]
    generator = torch.Generator().manual_seed(1000 + seed)

    def wire(value: Any) -> Tensor:
        return tensor_of(tensor.name, value.to(dtype).reshape(shape))

    if dtype == torch.bool:
        yield from (wire(torch.zeros(count)), wire(torch.ones(count)))
    elif dtype.is_floating_point:
        for low, high in ((0.0, 1.0), (0.0, 255.0), (-2.0, 0.0), (-1e4, 1e4), (-1e-3, 1e-3)):
            yield wire(torch.rand(count, generator=generator) * (high - low) + low)
        for special in (math.nan, math.inf, -math.inf):
            value = torch.randn(count, generator=generator)
            value[:1] = special
            yield wire(value)
    else:
        most = torch.iinfo(dtype).max
        for limit in (8, 50, 200, 1000, 30000) if indices else (2,):
            yield wire(torch.randint(0, min(limit, most), (count,), generator=generator))
        yield wire(torch.zeros(count))
        if indices and torch.iinfo(dtype).min:
            yield wire(-torch.ones(count))


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, of the largest number; infinite where what must be exact is not."""
    if one.data == other.data:
        return 0.0
    if one.datatype not in TOLERANCE or len(one.data) != len(other.data):
        return math.inf
    a, b = (_floats(tensor) for tensor in (one, other))
    unlike = (a != b) & ~(a.isnan() & b.isnan())
    if not bool(unlike.any()):
        return 0.0
    apart = (a - b).abs()[unlike]
    if not bool(apart.isfinite().all()):
        return math.inf
    scale = float(a[a.isfinite()].abs().max())
    if not scale and float(apart.max()) < 1e-6:
        return COARSE  # what rounding leaves of a difference of equals
    # Of each number's own size too: as far as 1e-4 goes, twice the scale at the most.
    return float((apart / (scale + a.abs()[unlike])).max()) if scale else math.inf


def _floats(tensor: Tensor) -> Any:
    if not len(tensor.data):
        return torch.empty(0)
    return torch.frombuffer(bytearray(tensor.data), dtype=DTYPES[tensor.datatype]).double()  # type: ignore[arg-type]
