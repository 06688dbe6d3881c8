"""An engine for the time of a test, and requests to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchpar.serve.engine.engine import Engine
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.errors import ServeError
from torchpar.serve.tensors import Tensor

DATATYPES = {
    torch.float32: "FP32", torch.float64: "FP64", torch.float16: "FP16", torch.bfloat16: "BF16", torch.int64: "INT64",
    torch.int32: "INT32", torch.int16: "INT16", torch.int8: "INT8", torch.uint8: "UINT8", torch.bool: "BOOL",
}  # fmt: skip


@asynccontextmanager
async def serving(path: Path, drain: float = 30, **settings: Any) -> AsyncIterator[Engine]:
    """An engine that serves a file or a directory under the name "m"."""
    engine = Engine(EngineOptions("m", model=str(path), **settings))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(drain)


def wire(name: str, value: torch.Tensor) -> Tensor:
    """A tensor in wire form."""
    raw = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return Tensor(name, DATATYPES[value.dtype], tuple(value.shape), raw)


def value(tensor: Tensor) -> torch.Tensor:
    """And back."""
    dtype = next(dtype for dtype, name in DATATYPES.items() if name == tensor.datatype)
    if not len(tensor.data):
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(bytearray(tensor.data), dtype=dtype).view(tensor.shape)  # type: ignore[arg-type]


def request(*values: torch.Tensor, names: str = "x", model: str = "m", **more: Any) -> Request:
    """A request with these inputs."""
    return Request(model, [wire(n, v) for n, v in zip(names.split(), values, strict=True)], **more)


class Answer:
    """What comes of one request."""

    def __init__(self, engine: Engine, asked: Request) -> None:
        self._future: asyncio.Future[Response | ServeError] = asyncio.get_running_loop().create_future()
        self.ticket = engine.submit(asked, self._future.set_result)

    async def get(self) -> Response | ServeError:
        """Wait for it."""
        return await asyncio.wait_for(self._future, 300)

    async def values(self) -> list[torch.Tensor]:
        """The outputs of an answer that must be one."""
        got = await self.get()
        if isinstance(got, ServeError):
            raise got
        return [value(tensor) for tensor in got.outputs]

    async def status(self) -> int:
        """The status of an answer that must be an error."""
        got = await self.get()
        assert isinstance(got, ServeError), got
        return got.status


def ask_for_a_moment(engine: Engine, asked: Request) -> Answer:
    """Submit it with a deadline that comes soon, as often as a slow host lets that pass before."""
    while True:
        try:
            return Answer(engine, replace(asked, deadline=time.monotonic() + 0.4))
        except ServeError as error:
            assert error.status == 504


@asynccontextmanager
async def busy(engine: Engine) -> AsyncIterator[Answer]:
    """A request that is being computed until the block ends."""
    runner = engine._repository.get("m").runner
    compute, begun, done = runner.compute, threading.Event(), threading.Event()

    def wait(*arguments: Any) -> Any:
        begun.set()
        assert done.wait(300)
        return compute(*arguments)

    runner.compute = wait  # type: ignore[method-assign]
    try:
        answer = Answer(engine, request(torch.ones(1, 1)))
        assert await asyncio.to_thread(begun.wait, 300)
        yield answer
    finally:
        done.set()


def ask(engine: Engine, asked: Sequence[Request]) -> list[Answer]:
    """Submit all in one turn of the event loop."""
    return [Answer(engine, each) for each in asked]
