"""What a worker does with its accelerator, on one that writes down what it is told."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from torchpar.serve.engine.columns import Column
from torchpar.serve.models.program import Program
from torchpar.serve.runners.device import Accelerator, Cuda
from torchpar.serve.runners.fork_server import serve_batches
from torchpar.serve.runners.memory import Memory
from torchpar.serve.runners.worker import Worker
from torchpar.serve.tensors import TensorSpec


class Recorder(Cuda):
    """Copies are made only when somebody waits, as a device does."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._later: list[tuple[torch.Tensor, torch.Tensor]] = []

    def queueing(self) -> AbstractContextManager[Any]:
        @contextmanager
        def whole() -> Iterator[None]:
            self.told.append("queue")
            yield
            self.told.append("queued")

        return whole()

    def upload(self, value: torch.Tensor) -> torch.Tensor:
        self.told.append("upload")
        return value.clone()

    def download(self, value: torch.Tensor, target: torch.Tensor) -> None:
        self.told.append("download")
        target.fill_(-1)
        self._later.append((value, target))

    def wait(self) -> None:
        self.told.append("wait")
        for value, target in self._later:
            target.copy_(value)
        self._later.clear()

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        self.told.append(f"pin {count}")
        return torch.empty(count, dtype=dtype)

    def register(self, address: int, size: int) -> bool:
        self.told.append(f"register {size}")
        return True

    def release(self, address: int) -> None:
        self.told.append("release")


class Both(Program):
    """Sum and difference."""

    platform = "test"
    inputs = (TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,)))
    outputs = (TensorSpec("sum", "FP32", (-1,)), TensorSpec("difference", "FP32", (-1,)))
    max_batch = None

    def compute(self, inputs: Sequence[Any]) -> dict[str, Any]:
        a, b = inputs
        return {"sum": a + b, "difference": a - b}


def test_a_batch_is_queued_whole_and_waited_for_once() -> None:
    """Two copies there, two back, one wait at the end; pinned memory is kept for batches that fit into it."""
    driver = Recorder()
    device = Accelerator(driver)
    a, b = torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0, 2.0, 3.0])
    total, difference = device.run(Both(), [a, b]).values()
    assert (total.tolist(), difference.tolist()) == ([6.0, 8.0, 10.0], [4.0, 4.0, 4.0])
    assert driver.told == "queue,upload,upload,pin 3,download,pin 3,download,queued,wait".split(",")
    driver.told.clear()
    total, difference = device.run(Both(), [a[:2], b[:2]]).values()
    assert (total.tolist(), difference.tolist()) == ([6.0, 8.0], [4.0, 4.0])
    assert driver.told == "queue,upload,upload,download,download,queued,wait".split(",")


def test_a_worker_with_an_accelerator_answers_from_the_shared_memory() -> None:
    """The memory is registered at the first batch, and anew when a larger one made it grow."""
    driver = Recorder()
    worker = Worker()
    far, fd = (os.dup(end) for end in worker.far_ends())
    worker.handed_over(os.getpid())
    ends = socket.socket(fileno=far), Memory(fd)
    thread = threading.Thread(target=serve_batches, args=(*ends, Both(), Accelerator(driver)))
    thread.start()
    for count in (2, 2, 5000):
        a = torch.arange(float(count))
        columns = [Column("FP32", (count,), [a.numpy().tobytes()]) for _ in "ab"]
        total, difference = worker.compute(["a", "b"], columns).outputs
        assert bytes(total.data) == (a + a).numpy().tobytes()  # type: ignore[arg-type]
        assert bytes(difference.data) == bytes(4 * count)  # type: ignore[arg-type]
    worker.close()
    thread.join(300)
    assert not thread.is_alive()
    registered = [told for told in driver.told if told.startswith("reg") or told == "release"]
    assert registered[:2] == ["register 4096", "release"] and registered[2].startswith("register ")
