"""An accelerator as a worker process uses it: how a batch gets there and back.

Inputs lie in the shared memory, which is registered with the driver once, so that the copies to the device need no copy
on the host and do not wait; all of a batch's work is queued on the device, and waited for once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from torchpar.serve.models.program import Program
from torchpar.serve.runners.memory import Memory


class Cuda:
    """The driver's doors: the only lines that differ between kinds of accelerators. Also ROCm's, under torch's name."""

    def __init__(self, name: str) -> None:
        """name is torch's, such as "cuda:0"."""
        self._name = name
        torch.cuda.set_device(name)
        self._stream = torch.cuda.Stream(name)

    def queueing(self) -> AbstractContextManager[Any]:
        """While it lasts, work goes to this process's stream."""
        found: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return found

    def upload(self, value: Any) -> Any:
        """Queues the copy of a tensor to the device."""
        return value.to(self._name, non_blocking=True)

    def download(self, value: Any, target: Any) -> None:
        """Queues the copy of a tensor to memory of `pinned`."""
        target.copy_(value, non_blocking=True)

    def wait(self) -> None:
        """Until everything that was queued is done."""
        self._stream.synchronize()

    def pinned(self, count: int, dtype: Any) -> Any:
        """Makes a flat tensor in memory that the device reaches by itself."""
        return torch.empty(count, dtype=dtype, pin_memory=True)

    def register(self, address: int, size: int) -> bool:
        """Makes such memory of what another process shares; False if the driver does not."""
        return int(torch.cuda.cudart().cudaHostRegister(address, size, 0)) == 0

    def release(self, address: int) -> None:
        """Undoes `register`."""
        torch.cuda.cudart().cudaHostUnregister(address)


class Accelerator:
    """Runs a program's batches on one device."""

    def __init__(self, driver: Cuda) -> None:
        self._driver = driver
        self._pinned: dict[str, Any] = {}  # an output's name → its memory on the host
        self._attached: Any = None
        self._address = 0

    def attach(self, memory: Memory) -> None:
        """Pins the memory that the server writes to, anew when it was mapped anew.

        Where the driver refuses, copies from it are slower, and as right.
        """
        if memory.map is self._attached:
            return
        if self._address:
            self._driver.release(self._address)
        # The old map lives until here: what is registered must not be unmapped.
        self._attached = memory.map
        address = ctypes.addressof((ctypes.c_char * len(memory.view)).from_buffer(memory.map))
        self._address = address if self._driver.register(address, len(memory.view)) else 0

    def run(self, program: Program, inputs: Sequence[Any]) -> dict[str, Any]:
        """Copies the inputs there, computes, copies the outputs back; what is no tensor (BYTES) stays on the host.

        The outputs are in memory that the next batch uses again.
        """
        with self._driver.queueing():
            there = [self._driver.upload(value) if _is_tensor(value) else value for value in inputs]
            results = program.compute(there)
            here = {name: self._fetch(name, value) if _is_tensor(value) else value for name, value in results.items()}
        self._driver.wait()
        return here

    def _fetch(self, name: str, value: Any) -> Any:
        """Pinned memory is slow to get: an output's is kept for the next batch."""
        flat = value.detach().contiguous().view(-1)
        kept = self._pinned.get(name)
        if kept is None or kept.dtype != flat.dtype or kept.numel() < flat.numel():
            kept = self._pinned[name] = self._driver.pinned(flat.numel(), flat.dtype)
        target = kept[: flat.numel()]
        self._driver.download(flat, target)
        return target.view(value.shape)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
