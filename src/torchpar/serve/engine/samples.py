"""Makes the rows that a model is tried with, and puts rows together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchpar.serve.engine.columns import Column
from torchpar.serve.errors import ServeError
from torchpar.serve.models.values import DTYPES, tensor_of
from torchpar.serve.tensors import Tensor, TensorSpec

# Sizes that stand for a dimension that requests choose: the first with which the model runs.
SIZES_TO_TRY = (16, 32, 64, 224, 8, 1)


def made_up(spec: TensorSpec, rows: int, size: int, seed: int) -> Tensor:
    """Makes rows that differ: small numbers, which are indices for most models that want whole ones."""
    shape = [size if n == -1 else n for n in spec.shape]
    if spec.shape and spec.shape[0] == -1:
        shape[0] = rows
    for i, (low, high) in enumerate(spec.limits):
        shape[i] = max(low, shape[i] if high is None else min(high, shape[i]))
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


def batch_of(sample: Sequence[Tensor], rows: int) -> list[Column]:
    """Makes a batch of equal rows."""
    return [Column(t.datatype, (rows, *t.shape[1:]), [t.data] * rows) for t in sample]


def joined(rows: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Joins several rows to one batch."""
    found = []
    for parts in zip(*rows):
        first = parts[0]
        data: Any = [element for part in parts for element in part.data]
        if first.datatype != "BYTES":
            data = b"".join(bytes(part.data) for part in parts)
        found.append(Tensor(first.name, first.datatype, (len(rows), *first.shape[1:]), data))
    return found


def multiplied(tensor: Tensor, factor: int) -> Tensor:
    """Multiplies the values of a tensor by a number. Unsigned values wrap."""
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None or tensor.datatype == "BOOL" or not len(tensor.data):
        return tensor
    value = torch.frombuffer(bytearray(tensor.data), dtype=dtype).view(tensor.shape)  # type: ignore[arg-type]
    return tensor_of(tensor.name, (value * factor).to(dtype))


def is_special(tensor: Tensor) -> bool:
    """Says whether a tensor has values that are no finite numbers."""
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None or not dtype.is_floating_point or not len(tensor.data):
        return False
    return not bool(torch.frombuffer(bytearray(tensor.data), dtype=dtype).isfinite().all())  # type: ignore[arg-type]


def specs_of(seen: Mapping[int, list[Tensor]]) -> tuple[TensorSpec, ...]:
    """Describes the outputs as seen, with the number of rows open."""
    some = next(iter(seen.values()))
    return tuple(TensorSpec(tensor.name, tensor.datatype, (-1, *tensor.shape[1:])) for tensor in some)
