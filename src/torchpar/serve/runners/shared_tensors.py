"""Makes the tensors that a worker computes with: views of the shared memory, as long as no batch is kept."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from torchpar.serve.models.values import DTYPES
from torchpar.serve.runners.memory import Memory, Place

# How often what holds a batch is looked at for garbage, which takes some 50 ms.
_COLLECTIONS = 2


class Inputs:
    """Makes the inputs of one worker's batches.

    A program may keep what it gets, or a view of it, as a history or a cache does, and the next batch would be written
    there. Where it does so, the server is told to leave that memory alone, and all later inputs are copies.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._buffer: weakref.ref[memoryview] | None = None  # what the tensors of this batch hold
        self._copied = False
        self._collected = 0

    def take(self, places: Sequence[Place]) -> list[Any]:
        """Returns the inputs that lie there."""
        if self._copied:
            return [_copy(value_at(self._memory, place, self._memory.map)) for place in places]
        buffer = memoryview(self._memory.map)
        self._buffer = weakref.ref(buffer)
        return [value_at(self._memory, place, buffer) for place in places]

    def were_kept(self) -> bool:
        """Says whether something still holds the memory of the batch, which has been answered; true once at most."""
        if self._copied or self._buffer is None or self._buffer() is None:
            return False
        # Errors that know their own frames hold it, and are garbage; one that is made for each batch is no better.
        if self._collected < _COLLECTIONS:
            self._collected += 1
            gc.collect()
            if self._buffer() is None:
                return False
        self._copied = True
        return True


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def value_at(memory: Memory, place: Place, buffer: Any) -> Any:
    """Returns an input of a batch. A tensor of numbers is a view of the buffer, which it holds."""
    datatype, shape = place["datatype"], place["shape"]
    if datatype == "BYTES":
        return memory.read(place).data
    count = math.prod(shape)
    if datatype == "BOOL":
        # Any other byte than 0 and 1 in a bool tensor is undefined behaviour in torch.
        return _at(buffer, torch.uint8, place["start"], count).view(shape).ne(0)
    return _at(buffer, DTYPES[datatype], place["start"], count).view(shape)


def _at(buffer: Any, dtype: Any, start: int, count: int) -> Any:
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start)
