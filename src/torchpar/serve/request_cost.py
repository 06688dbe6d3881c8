"""Measures what a request costs beside what is computed for it, with the server's own code and an engine of nothing."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import time
from collections.abc import Collection, Sequence

from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.engine.curve import Curve
from torchpar.serve.engine.engine import Engine
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.served import Served
from torchpar.serve.engine.statistics import Statistics
from torchpar.serve.http.application import Application
from torchpar.serve.http.connection import Connection
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.state import ServerState
from torchpar.serve.limits import Limits
from torchpar.serve.models.identity import Serves
from torchpar.serve.protocol.log_settings import LogSettings, TraceSettings
from torchpar.serve.protocol.service import Service
from torchpar.serve.runners.runner import Runner
from torchpar.serve.tensors import Tensor, TensorSpec

# Requests of one measurement, and measurements, of which the least disturbed counts: 0.1 seconds in all.
REQUESTS, TIMES = 104, 5
# On their way at the same time, as under load.
AT_ONCE = 8

# FP32 values of the request that is measured.
VALUES = 256


async def measure_request() -> float:
    """Returns the seconds of one CPU that a request costs, from its first byte to its last, but for computing it."""
    engine = _Engine(EngineOptions("m"))
    await engine.start()
    service = Service(engine, LogSettings(lambda _: None), TraceSettings(lambda *_: None))
    state = ServerState(application := Application(service), Limits(), RequestLog(math.inf))
    state.loop = loop = asyncio.get_running_loop()
    application.serve(state)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(lambda: Connection(state, ""), ours)
    try:
        theirs.settimeout(10.0)
        return min([await _measure(loop, theirs) for _ in range(TIMES)])
    finally:
        transport.abort()
        theirs.close()
        engine.end()
        service.threads.shutdown(wait=False)
        service.apart.close()


async def _measure(loop: asyncio.AbstractEventLoop, client: socket.socket) -> float:
    began = time.process_time()
    elsewhere = await loop.run_in_executor(None, _ask, client)
    return max(time.process_time() - began - elsewhere, 0.0) / REQUESTS


def _ask(client: socket.socket) -> float:
    """Asks some requests at once, again and again; returns the seconds of CPU time that asking took."""
    began = time.thread_time()
    for _ in range(REQUESTS // AT_ONCE):
        client.sendall(_REQUEST * AT_ONCE)
        answers = 0
        while answers < AT_ONCE:
            piece = client.recv(65536)
            if not piece:
                raise RuntimeError("the server does not answer itself")
            answers += piece.count(b"HTTP/1.1 200 ")
    return time.thread_time() - began


def _make_request() -> bytes:
    data = struct.pack(f"<{VALUES}f", *range(VALUES))
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, VALUES], "parameters": parameters}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = (
        f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: {len(text)}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(text) + len(data)}\r\n\r\n"
    )
    return head.encode() + text + data


_REQUEST = _make_request()


class _Nothing(Runner):
    """Computes nothing: the answer is the question."""

    platform = "nothing"
    inputs = (TensorSpec("x", "FP32", (-1, VALUES)),)
    outputs = (TensorSpec("y", "FP32", (-1, VALUES)),)
    max_batch = None

    def compute(self, slot: int, columns: Sequence[Column], team: int = 1) -> Computed:
        column = columns[0]
        now = time.monotonic()
        return Computed([Tensor("y", "FP32", column.shape, b"".join(column.parts))], now, now)

    def mend(self, slot: int) -> None:
        pass

    def writes(self) -> str:
        return ""

    def keep_one(self) -> None:
        pass

    def renew(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Engine(Engine):
    async def prepare(self, like: Serves | None, unloaded: Collection[str], unbatched: Collection[str]) -> None:
        self._loop = asyncio.get_running_loop()
        runner = _Nothing()
        served = Served(
            "m",
            "1",
            runner,
            outputs=runner.outputs,
            batched=True,
            loose=False,
            curve=Curve({1: 1e-5}, AT_ONCE),
            most=AT_ONCE,
            statistics=Statistics(),
            path="",
            files={},
        )
        self._repository.put(served)

    def end(self) -> None:
        """Ends its thread."""
        assert self._pool
        self._pool.stop()
