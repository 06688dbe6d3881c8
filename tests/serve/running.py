"""A server on a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.serve.echo import EchoEngine
from torchpar.serve.http.application import Application
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.server import Server
from torchpar.serve.limits import Limits
from torchpar.serve.protocol.log_settings import LogSettings, TraceSettings
from torchpar.serve.protocol.service import Service


@dataclass
class Running:
    """What a test has; `lines` is the journal."""

    engine: Any
    service: Any = None
    server: Any = None
    port: int = 0
    grpc_port: int = 0
    grace: float = 0.1
    lines: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    ahead: float = 0.0

    def pass_time(self, seconds: float) -> None:
        """Have so much time be over for the server at once, with all that it does meanwhile."""
        # What is slow is seen once, and then a second time.
        for step in (1.0, seconds - 1.0):
            over = threading.Event()
            self.server.loop.call_soon_threadsafe(self._jump, step, over.set)
            assert over.wait(300)

    def _jump(self, seconds: float, then: Callable[[], None]) -> None:
        self.server.loop.call_later(seconds, then)
        self.ahead += seconds

    def hurry(self, header_seconds: float) -> None:
        """Give the clients that are there no longer than this for a header from now on."""
        for connection in self.server.state.all_connections():
            connection.limits = replace(connection.limits, header_seconds=header_seconds)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def running(
    engine: Any = None, limits: Limits | None = None, *, real: bool = False, grpc: bool = False
) -> Iterator[Running]:
    """Start, and stop afterwards. `real`: the engine must be started too; `grpc`: listen for that too."""
    world = Running(engine or EchoEngine())
    started, loop = threading.Event(), asyncio.new_event_loop()
    clock = loop.time
    loop.time = lambda: clock() + world.ahead  # type: ignore[method-assign]
    # Made on the loop: before Python 3.10 it belongs to the loop of its maker's thread.
    ended: list[asyncio.Event] = []

    async def serve() -> None:
        ended.append(asyncio.Event())
        loop.set_exception_handler(lambda _, context: world.errors.append(context))
        if real:
            await world.engine.start()
        log = RequestLog(1.0, write=world.lines.append)
        service = Service(world.engine, LogSettings(log.set_every), TraceSettings(world.lines.append))
        world.service = service
        application = Application(service)
        world.server = server = Server(application, limits or Limits(), log)
        application.serve(server.state)
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        await server.start([listener])
        world.port = listener.getsockname()[1]
        if grpc:
            from torchpar.serve.grpc.server import GrpcServer

            grpc_server = GrpcServer(service, server)
            world.grpc_port = grpc_server.start("127.0.0.1:0")
        started.set()
        await ended[0].wait()
        if grpc:
            grpc_server.stop()
        await server.stop(world.grace)
        service.threads.shutdown()
        service.apart.close()
        if real:
            await world.engine.stop(5)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(200)
    try:
        yield world
    finally:
        loop.call_soon_threadsafe(ended[0].set)
        thread.join(300)
    assert world.errors == []
