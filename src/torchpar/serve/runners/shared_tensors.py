"""Makes the tensors that a worker computes with: they lie in the shared memory and are no copies."""

from __future__ import annotations

import math
from typing import Any

import torch

from torchpar.serve.models.values import DTYPES
from torchpar.serve.runners.memory import Memory, Place


def value_at(memory: Memory, place: Place) -> Any:
    """Returns an input of a batch. A tensor is valid until the batch is answered."""
    datatype, shape = place["datatype"], place["shape"]
    if datatype == "BYTES":
        return memory.read(place).data
    count = math.prod(shape)
    if datatype == "BOOL":
        # Any other byte than 0 and 1 in a bool tensor is undefined behaviour in torch.
        return _at(memory, torch.uint8, place["start"], count).view(shape).ne(0)
    return _at(memory, DTYPES[datatype], place["start"], count).view(shape)


def _at(memory: Memory, dtype: Any, start: int, count: int) -> Any:
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(memory.map, dtype=dtype, count=count, offset=start)
