"""Keeps the weights of a model once for several processes, in memory that the kernel shares between them.

One of them copies its own into memory that nobody can change from then on; each maps it in the place of its own, once
it has seen that every byte is the same. What a program writes to is copied for its process then, page by page.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from fcntl import fcntl
from typing import Any

import torch

from torchpar.serve.models.values import bytes_of

# Less than this, in bytes, is not worth a mapping.
LEAST = 1 << 20

# Of a storage in the shared memory, in bytes: what torch aligns its own to.
_ALIGNMENT = 64

# fcntl(2); Python's module has them from 3.9 on, where it was built so.
_F_ADD_SEALS = 1033
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_WRITE = 1, 2, 4, 8


class Weights:
    """Knows the storages of a program's tensors, each once, and the place of each in the shared memory."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        """tensors: all that a program consists of; those that are not dense, or elsewhere, are left alone."""
        self._tensors = [tensor for tensor in tensors if _is_plain(tensor)]
        self._places: dict[int, int] = {}
        self.size = 0
        for storage in self._storages():
            self._places[storage.data_ptr()] = self.size
            self.size += -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT

    def checksum(self) -> int:
        """Sums their bytes up, so that the same weights are found again; being equal is seen when they are adopted."""
        total = 0
        for storage in self._storages():
            total = zlib.crc32(bytes_of(_bytes(storage)), total)
        return total

    def copy(self) -> int:
        """Copies them into shared memory; returns its descriptor. Raises OSError."""
        fd = os.memfd_create("torchpar-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, self.size)
            for storage in self._storages():
                _write(fd, bytes_of(_bytes(storage)), self._places[storage.data_ptr()])
            fcntl(fd, _F_ADD_SEALS, _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW | _SEAL_WRITE)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def adopt(self, fd: int) -> bool:
        """Puts what is in shared memory in the place of their own; False, and nothing changes, where it differs.

        No program may compute with them meanwhile. Raises OSError.
        """
        if os.fstat(fd).st_size != self.size:
            return False
        memory = mmap.mmap(fd, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        shared: dict[int, Any] = {}
        for storage in self._storages():
            count, place = storage.nbytes(), self._places[storage.data_ptr()]
            copy = torch.frombuffer(memory, dtype=torch.uint8, count=count, offset=place)
            if not torch.equal(copy, _bytes(storage)):
                return False
            shared[storage.data_ptr()] = copy.untyped_storage()
        with torch.no_grad():
            for tensor in self._tensors:
                storage = shared.get(tensor.untyped_storage().data_ptr())
                if storage is not None:
                    tensor.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
        return True

    def _storages(self) -> Iterator[Any]:
        seen = set()
        for tensor in self._tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage


def _is_plain(tensor: torch.Tensor) -> bool:
    dense = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return dense and tensor.device.type == "cpu"


def _bytes(storage: Any) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _write(fd: int, data: memoryview, offset: int) -> None:
    """Writes it all: one call writes 2 GiB at the most."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
