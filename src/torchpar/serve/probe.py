"""Trying a model before it serves: does it run, may its rows be put together, and how long does a batch take.

A model may be batched if the answer to a row does not depend on the rows beside it, and every output has a row for
every row of the input. Both are tried, with rows that differ. What fails is served one request at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchpar.serve.columns import Column, Computed
from torchpar.serve.errors import ServeError
from torchpar.serve.models.values import DTYPES, tensor_of
from torchpar.serve.runner import Runner
from torchpar.serve.tensors import SIZES, Tensor, TensorSpec

# Sizes that stand for a dimension that requests choose: the first with which the model runs.
SIZES_TO_TRY = (16, 32, 64, 224, 8, 1)
# How batches of these rows must agree with the same rows asked for one by one, or in these groups.
GROUPS = ((1, 1), (2, 3), (1, 4, 2))
# Of the largest number in an output. Another order of summing changes the last digits; another row changes the first.
TOLERANCE = {"FP64": 1e-9, "FP32": 1e-4, "FP16": 2e-2, "BF16": 5e-2}


@dataclass(frozen=True)
class Probe:
    """What the trial found. sample: one row of each input, to make batches of; None if the model did not run.

    reason says why it is served unbatched, "" if it may be batched. outputs are as declared, else as seen.
    """

    reason: str
    sample: tuple[Tensor, ...] | None
    outputs: tuple[TensorSpec, ...]


def try_model(runner: Runner, lane: int = 0) -> Probe:
    """Run it on made-up rows, or on its own example."""
    try:
        sample, size = _find_sample(runner, lane)
    except ServeError as error:
        return Probe(f"it could not be tried on made-up inputs: {error.message}", None, runner.outputs)
    outputs = runner.outputs
    if not runner.inputs or any(not spec.shape or spec.shape[0] != -1 for spec in runner.inputs):
        return Probe("its inputs have no open first dimension, which would be the rows", None, outputs)
    if runner.max_batch is not None and runner.max_batch <= 1:
        return Probe("its description says so (max_batch)", sample, outputs)
    try:
        seen: dict[int, list[Tensor]] = {}
        for groups in GROUPS:
            reason = _compare(runner, lane, sample, size, groups, seen)
            if reason:
                return Probe(reason, sample, outputs)
    except ServeError as error:
        return Probe(f"it failed on several rows: {error.message}", sample, outputs)
    return Probe("", sample, outputs or _specs(seen))


def batch_of(sample: Sequence[Tensor], rows: int) -> list[Column]:
    """A batch of equal rows."""
    return [Column(t.datatype, (rows, *t.shape[1:]), [t.data] * rows) for t in sample]


def _find_sample(runner: Runner, lane: int) -> tuple[tuple[Tensor, ...], int]:
    if runner.example is not None:
        first = tuple(_rows(tensor, 0, 1) for tensor in runner.example)
        runner.compute(lane, batch_of(first, 1))
        return first, 0
    refused: ServeError | None = None
    for size in SIZES_TO_TRY:
        sample = tuple(_made_up(spec, 1, size, seed=0) for spec in runner.inputs)
        try:
            runner.compute(lane, batch_of(sample, 1))
            return sample, size
        except ServeError as error:
            refused = refused or error
            if error.status != 500 or all(-1 not in spec.shape[1:] for spec in runner.inputs):
                break
    assert refused
    raise refused


def _compare(
    runner: Runner,
    lane: int,
    sample: Sequence[Tensor],
    size: int,
    groups: tuple[int, ...],
    seen: dict[int, list[Tensor]],
) -> str:
    """Compute the groups one by one and all at once; "" if that is the same."""
    rows = sum(groups)
    if runner.example is not None:
        inputs = [_repeat(tensor, rows) for tensor in runner.example]
    else:
        inputs = [_made_up(spec, rows, size, seed=rows) for spec in runner.inputs]
    whole = _run(runner, lane, inputs, rows).outputs
    seen[rows] = whole
    for tensor in whole:
        if not tensor.shape or tensor.shape[0] != rows:
            return f"output '{tensor.name}' has shape {list(tensor.shape)} for {rows} rows of input"
    start = 0
    for count in groups:
        alone = _run(runner, lane, [_rows(t, start, start + count) for t in inputs], count).outputs
        seen[count] = alone
        for one, all_of_it in zip(alone, whole):
            part = _rows(all_of_it, start, start + count)
            if one.shape != part.shape or one.datatype != part.datatype:
                return f"output '{one.name}' has shape {list(one.shape)} for {count} rows, and in a batch another"
            if not _equal(one, part):
                return f"output '{one.name}' of a row depends on the rows beside it"
        start += count
    return ""


def _run(runner: Runner, lane: int, inputs: Sequence[Tensor], rows: int) -> Computed:
    return runner.compute(lane, [Column(t.datatype, t.shape, [t.data]) for t in inputs])


def _made_up(spec: TensorSpec, rows: int, size: int, seed: int) -> Tensor:
    """Rows that differ: small numbers, which are indices for most models that want whole ones."""
    shape = [size if n == -1 else n for n in spec.shape]
    if spec.shape and spec.shape[0] == -1:
        shape[0] = rows
    if spec.datatype == "BYTES":
        count = math.prod(shape)
        return Tensor(spec.name, "BYTES", tuple(shape), [str((seed + i) % 10).encode() for i in range(count)])
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES.get(spec.datatype)
    if dtype is None:
        raise ServeError(500, f"this torch has no {spec.datatype}")
    if dtype.is_floating_point:
        value: Any = torch.randn(shape, generator=generator).to(dtype)
    else:
        value = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return tensor_of(spec.name, value)


def _rows(tensor: Tensor, start: int, end: int) -> Tensor:
    per_row = math.prod(tensor.shape[1:]) * (SIZES[tensor.datatype] or 1)
    data: Any = tensor.data
    return Tensor(tensor.name, tensor.datatype, (end - start, *tensor.shape[1:]), data[start * per_row : end * per_row])


def _repeat(tensor: Tensor, rows: int) -> Tensor:
    have, data = tensor.shape[0], tensor.data
    times = -(-rows // have)
    whole = data * times if isinstance(data, list) else bytes(data) * times
    return _rows(Tensor(tensor.name, tensor.datatype, (have * times, *tensor.shape[1:]), whole), 0, rows)


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.data == other.data:
        return True
    tolerance = TOLERANCE.get(one.datatype)
    if tolerance is None:
        return False
    a, b = (_floats(tensor) for tensor in (one, other))
    finite = a[a.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def _floats(tensor: Tensor) -> Any:
    if not len(tensor.data):
        return torch.empty(0)
    return torch.frombuffer(bytearray(tensor.data), dtype=DTYPES[tensor.datatype]).double()  # type: ignore[arg-type]


def _specs(seen: dict[int, list[Tensor]]) -> tuple[TensorSpec, ...]:
    """The outputs as seen, with the rows open."""
    some = next(iter(seen.values()))
    return tuple(TensorSpec(tensor.name, tensor.datatype, (-1, *tensor.shape[1:])) for tensor in some)
