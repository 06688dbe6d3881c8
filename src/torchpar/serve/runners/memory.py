"""Shared memory between the server and one worker process: the inputs of a batch first, then its outputs.

Both ends map one anonymous file and make it longer when it is too short; who finds its map shorter than the file maps
it anew. Only where the tensors lie goes over the socket.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Sequence
from typing import Any

import torch

from torchpar.serve.engine.columns import Column, elements, lay
from torchpar.serve.models.values import bytes_of
from torchpar.serve.tensors import Tensor

# More than this is copied by torch, which lets go of Python's lock: the event loop wants it meanwhile.
LARGE = 1 << 20
# What vector instructions like best.
ALIGN = 64
_LENGTH = struct.Struct("<I")

# {"name", "datatype", "shape", "start", "size"}: one tensor in the memory.
Place = dict[str, Any]


class Memory:
    """The memory behind a file descriptor, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.map: Any = None
        self.view = memoryview(b"")
        self.reach(mmap.PAGESIZE)

    def reach(self, size: int) -> None:
        """Maps at least this many bytes; the contents stay."""
        if len(self.view) >= size:
            return
        have = os.fstat(self._fd).st_size
        if have < size:
            # Twice as much as now: a growing batch should not map anew each time.
            have = max(size, 2 * have)
            have += -have % mmap.PAGESIZE
            os.ftruncate(self._fd, have)
        self.map = mmap.mmap(self._fd, have)
        self.view = memoryview(self.map)

    def write(self, columns: Sequence[tuple[str, Column]], start: int = 0) -> list[Place]:
        """Lays the columns out from `start` on; tells where each is."""
        places = []
        for name, column in columns:
            if column.datatype == "BYTES":
                parts = [b"".join(_LENGTH.pack(len(e)) + e for e in elements(column.parts))]
            else:
                parts = list(column.parts)
            start += -start % ALIGN
            size = sum(len(part) for part in parts)
            self.reach(start + size)
            lay(parts, self.view[start : start + size])
            place = {"name": name, "datatype": column.datatype, "shape": column.shape, "start": start, "size": size}
            places.append(place)
            start += size
        return places

    def read(self, place: Place) -> Tensor:
        """Copies a tensor out, in wire form."""
        start, end = place["start"], place["start"] + place["size"]
        self.reach(end)
        shape = tuple(place["shape"])
        if place["datatype"] == "BYTES":
            return Tensor(place["name"], "BYTES", shape, _split(bytes(self.view[start:end]), math.prod(shape)))
        if place["size"] < LARGE:
            return Tensor(place["name"], place["datatype"], shape, bytes(self.view[start:end]))
        copy = torch.frombuffer(self.map, dtype=torch.uint8, count=place["size"], offset=start).clone()
        return Tensor(place["name"], place["datatype"], shape, bytes_of(copy))


def end_of(places: Sequence[Place]) -> int:
    """Returns the first free byte behind the tensors."""
    return max((place["start"] + place["size"] for place in places), default=0)


def _split(raw: bytes, count: int) -> list[bytes]:
    found, at = [], 0
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(raw, at)
        found.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return found
