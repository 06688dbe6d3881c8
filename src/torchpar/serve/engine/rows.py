"""Rows: cut, repeated, made up, and compared as answers to the same question.

Kernels choose their way of summing by the shape, so a row's answer in a batch is not the same to the last digit as
alone. No size of a difference tells that from another row's influence, for an output may hold pixels beside
probabilities. What tells it is to ask once more, in a batch of the same shape that holds nothing else: there the
kernels do the same, to the bit, and only the neighbours are others. Then in one with a row more: kernels that are not
for a single row do nearly the same, and what counts its rows does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchpar.serve.models.values import DTYPES, tensor_of
from torchpar.serve.tensors import SIZES, Tensor

# Of the largest number in a row: what no kernel's other order of summing exceeds. Other datatypes are exact.
TOLERANCE = {"FP64": 1e-9, "FP32": 1e-4, "FP16": 2e-2, "BF16": 5e-2}
# What rounding to 16 bits within, or an ill-conditioned model, may make of it at the most.
COARSE = 2e-2
# Of the largest number in a row: what rounding may leave of any other in it.
NOISE = {"FP64": 1e-9, "FP32": 2e-6, "FP16": 2e-2, "BF16": 5e-2}
# From so many rows on a number is also measured by those at its place in the other rows: fewer may all be small there.
ROWS_TO_MEASURE = 4
# So many parts of a batch, at the most, are computed once more.
ASKED_AGAIN = 8

# Of an answer so many numbers are looked at together, as doubles.
NUMBERS_AT_ONCE = 2**17

# So many columns of a row have a number of their own that is none; of more than these every so many-th.
COLUMNS = 8

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
    """Cuts some rows out of a tensor."""
    per_row = math.prod(tensor.shape[1:]) * (SIZES[tensor.datatype] or 1)
    data: Any = tensor.data
    return Tensor(tensor.name, tensor.datatype, (end - start, *tensor.shape[1:]), data[start * per_row : end * per_row])


def repeat(tensor: Tensor, rows: int) -> Tensor:
    """Repeats a tensor's rows until there are so many."""
    have, data = tensor.shape[0], tensor.data
    times = -(-rows // have)
    whole = data * times if isinstance(data, list) else bytes(data) * times
    return cut(Tensor(tensor.name, tensor.datatype, (have * times, *tensor.shape[1:]), whole), 0, rows)


def only(
    rows: Sequence[Tensor], start: int, size: int, more: int = 0, most: int | None = None
) -> tuple[list[Tensor], int]:
    """Makes a batch of `size` rows with some from `start` on and nothing but them around; returns it and that start.

    more = 1: of a row more, or one less where a batch has `most`; the start may have to be an earlier one then.
    """
    have = rows[0].shape[0]
    size += more if most is None or size + more <= most else -more
    start = min(start, size - have)
    skip = -start % have
    return [cut(repeat(tensor, size + have), skip, skip + size) for tensor in rows], start


@dataclass(frozen=True)
class Part:
    """Some rows: their answer alone, and that in a batch.

    again computes them once more, in a batch of no other rows: 0 with as many of them as in that one, 1 with one more
    (or one less, where the model takes no more).
    """

    alone: Sequence[Tensor]
    answer: Sequence[Tensor]
    again: Callable[[int], Sequence[Tensor]]


def difference(parts: Sequence[Part], whole: Sequence[Tensor] = (), kind: str = "KIND_CPU") -> str:
    """Says in words how a batch's answer differs from those of its parts alone; "" if it does not.

    whole is the answer of all rows. Parts beyond the tolerance are asked again, and of the others the one that differs
    most: not all of them, for what a neighbour or their number does is in more than one. Another number of rows tells
    nothing on accelerators (`kind`), whose kernels are chosen anew for each.
    """
    unlike: list[tuple[float, Part]] = []
    columns: dict[int, Any] = {}
    for part in parts:
        if [tensor.name for tensor in part.alone] != [tensor.name for tensor in part.answer]:
            return "the outputs are others"
        most = -1.0
        for i, (one, other) in enumerate(zip(part.alone, part.answer)):
            if one.datatype != other.datatype or one.shape != other.shape:
                return f"output '{one.name}' has shape {list(one.shape)} alone, and in a batch {list(other.shape)}"
            if one.data == other.data:
                continue
            if whole and i not in columns:
                columns[i] = _columns(whole[i])
            by = _distance(one, other, columns.get(i))
            if math.isinf(by):
                return f"output '{one.name}' of a row depends on the rows beside it"
            most = max(most, by)
        if most >= 0.0:
            unlike.append((most, part))
    unlike.sort(key=lambda pair: -pair[0])
    for number, (by, part) in enumerate(unlike[:ASKED_AGAIN]):
        if number and by <= 1.0:
            break
        name = _differs(part, by > 1.0, columns, kind)
        if name:
            return name
    return ""


def _differs(part: Part, doubtful: bool, columns: dict[int, Any], kind: str) -> str:
    """Says in words how the other rows of the batch, or their number, change a part's answer; "" if they do not."""
    found = _unlike(part.again(0), part.answer)
    if found and kind != "KIND_CPU" and not doubtful:
        # Some kernels there add up in whichever order: then not even the same batch is the same.
        found = "" if _unlike(part.again(0), part.again(0)) else found
    if found:
        return f"output '{found}' of a row depends on the rows beside it"
    if doubtful and kind == "KIND_CPU":
        for i, (one, other) in enumerate(zip(part.answer, part.again(1))):
            if one.data != other.data and _distance(one, other, columns.get(i)) > 1.0:
                return f"output '{one.name}' of a row depends on how many rows are beside it"
    return ""


def _unlike(some: Sequence[Tensor], others: Sequence[Tensor]) -> str:
    return next((one.name for one, other in zip(some, others) if bytes_of(one) != bytes_of(other)), "")


def bytes_of(tensor: Tensor) -> Any:
    """Returns a tensor's values so that two tensors compare equal if they are the same to the bit."""
    return tensor.data if isinstance(tensor.data, list) else bytes(tensor.data)


def odd_rows(sample: Sequence[Tensor], indices: bool) -> Iterator[tuple[Tensor, ...]]:
    """Yields rows like one that the model takes, each unlike it in one input, or in all of a kind: see `_odd`.

    indices tells whether whole numbers may be beyond what a table has.
    """
    odd = [list(_odd(tensor, seed, indices)) for seed, tensor in enumerate(sample)]
    for number in range(max(map(len, odd), default=0)):
        for i, found in enumerate(odd):
            if number < len(found):
                yield tuple(found[number] if j == i else tensor for j, tensor in enumerate(sample))
        if len(odd) > 1:
            yield tuple(found[number] if number < len(found) else one for found, one in zip(odd, sample))


def _odd(tensor: Tensor, seed: int, indices: bool) -> Iterator[Tensor]:
    """Yields a row of other scales each, in an order that puts first what models most often ask about numbers."""
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
        # First, everywhere, and in one column after another: what looks at one of them looks at no other.
        last = shape[-1] if len(shape) > 1 and count else 1
        columns = sorted({last * i // COLUMNS for i in range(COLUMNS)} | {last - 1})
        for places in ([0], slice(None), *([column] for column in columns if column)):
            for special in (math.nan, math.inf, -math.inf):
                value = torch.randn(count, generator=generator)
                value[places if count else slice(None)] = special
                yield wire(value)
    else:
        most = torch.iinfo(dtype).max
        for limit in (8, 50, 200, 1000, 30000) if indices else (2,):
            yield wire(torch.randint(0, min(limit, most), (count,), generator=generator))
        yield wire(torch.zeros(count))
        if indices and torch.iinfo(dtype).min:
            yield wire(-torch.ones(count))


def _distance(one: Tensor, other: Tensor, columns: Any | None) -> float:
    """Measures how far two answers to the same rows are apart, in tolerances.

    Infinite where no choice of kernels explains the difference. columns: see `_columns`.
    """
    if one.datatype not in TOLERANCE or len(one.data) != len(other.data):
        return math.inf
    a, b = (_floats(tensor) for tensor in (one, other))
    same = (a == b) | (a.isnan() & b.isnan())
    apart = (a - b).abs().masked_fill_(same, 0.0)
    if not bool(apart.isfinite().all()):
        return math.inf
    tolerance, size = TOLERANCE[one.datatype], a.nan_to_num(0.0, 0.0, 0.0).abs()
    scale = size.amax(dim=1, keepdim=True)
    nothing = (scale == 0.0).squeeze(1)
    if bool((apart[nothing] >= 1e-6).any()):
        return math.inf
    # What rounding leaves of a difference of equals is in doubt, however small it is.
    doubt = 2.0 if bool(apart[nothing].any()) else 0.0
    apart, size, scale = apart[~nothing], size[~nothing], scale[~nothing]
    if not apart.numel():
        return doubt
    # Of each number's own size too: as far as 1e-4 goes, twice the scale at the most.
    by = apart / (scale + size)
    if float(by.max()) > max(COARSE, tolerance):
        return math.inf
    if columns is None:
        return max(doubt, float(by.max()) / tolerance)
    columns = columns.maximum(size.amax(dim=0))
    # What the largest columns have lost, the others may have lost too, of the row's largest number.
    lost = float((apart / scale)[:, columns >= 0.1 * columns.max()].max())
    noise = scale * max(10.0 * lost, NOISE[one.datatype])
    if bool((apart > (COARSE * columns).maximum(noise)).any()):
        return math.inf
    allowed = (tolerance * columns.minimum(scale)).maximum(NOISE[one.datatype] * scale)
    return max(doubt, float((apart / allowed).max()))


def _columns(whole: Tensor) -> Any | None:
    """Returns the largest number in each column, over all rows; None where the rows are too few."""
    if whole.datatype not in TOLERANCE or not whole.shape or whole.shape[0] < ROWS_TO_MEASURE:
        return None
    found: Any = None
    rows = max(1, NUMBERS_AT_ONCE // max(math.prod(whole.shape[1:]), 1))
    for start in range(0, whole.shape[0], rows):
        numbers = _floats(cut(whole, start, min(start + rows, whole.shape[0]))).nan_to_num_(0.0, 0.0, 0.0).abs_()
        found = numbers.amax(dim=0) if found is None else found.maximum(numbers.amax(dim=0))
    return found


def _floats(tensor: Tensor) -> Any:
    """Returns the numbers as a matrix, one line a row."""
    rows = tensor.shape[0] if tensor.shape else 1
    if not len(tensor.data):
        return torch.empty(rows, 0, dtype=torch.float64)
    found = torch.frombuffer(bytearray(tensor.data), dtype=DTYPES[tensor.datatype])  # type: ignore[arg-type]
    return found.double().view(rows, -1)
