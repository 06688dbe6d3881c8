"""A server with a small application, and a client that is as bad as a test wants it."""

from __future__ import annotations

import asyncio
import selectors
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torchpar.serve.http.exchange import Exchange
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.server import Server
from torchpar.serve.limits import Limits

T = TypeVar("T")


@dataclass
class Application:
    """Answers with what it got; /later waits until the test says so, /large is large, /bug raises."""

    held: list[Exchange] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def __call__(self, exchange: Exchange) -> None:
        self.paths.append(exchange.path)
        if exchange.path.startswith("/later"):
            exchange.cancel = lambda: self._cancel(exchange)
            self.held.append(exchange)
        elif exchange.path == "/bug":
            raise KeyError("a bug")
        elif exchange.path == "/large":
            exchange.respond(200, b"text/plain", b"x" * 10_000_000)
        else:
            exchange.respond(200, b"text/plain", b"%b %b" % (exchange.method, bytes(exchange.body[:100])))

    def _cancel(self, exchange: Exchange) -> None:
        """As an engine may: the answer to a request that was cancelled comes at once."""
        self.cancelled.append(exchange.path)
        exchange.fail(499, "cancelled")


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, fields, body."""
        text = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        lines = text.decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        size = 0 if head else int(fields.get("content-length", "0"))
        return int(lines[0].split()[1]), fields, await asyncio.wait_for(self.reader.readexactly(size), 5)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        return await asyncio.wait_for(self.reader.read(), 5)


@dataclass
class World:
    """What a test has."""

    server: Server
    application: Application
    address: tuple[str, int]
    lines: list[str]

    async def connect(self, receive_buffer: int = 0, tls: ssl.SSLContext | None = None) -> Client:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        secure: dict[str, Any] = {"ssl": tls, "server_hostname": "localhost"} if tls else {}
        limit = 1 if receive_buffer else 2**26
        return Client(*await asyncio.open_connection(sock=sock, limit=limit, **secure))


class Loop(asyncio.SelectorEventLoop):
    """Time passes here only while nothing else is to be done: a slow host changes no outcome.

    Client and server are both in it, and what one has sent the other can read, but for what the kernel puts off, such
    as an acknowledgement: so a wait is a real one.
    """

    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.passed = 0.0

    def time(self) -> float:
        return self.passed


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        if not ready and timeout is not None and timeout > 0:
            self._loop.passed += timeout
        return ready


def run_in_order(story: Coroutine[Any, Any, T]) -> T:
    """Run it where a slow host changes no outcome."""
    loop = Loop()
    try:
        return loop.run_until_complete(story)
    finally:
        loop.close()


async def until(what: Callable[[], Any]) -> None:
    """Wait until something is so, five seconds at the most."""
    for _ in range(500):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it has not come to pass")


def converse(
    talk: Callable[[World], Awaitable[None]],
    limits: Limits | None = None,
    *,
    slow_seconds: float = 1.0,
    every: bool = False,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Start a server, let the test talk to it, stop it; nothing may be left over."""

    async def run() -> None:
        lines: list[str] = []
        application = Application()
        log = RequestLog(slow_seconds, every, lines.append)
        server = Server(application, limits or Limits(), log)
        listener = socket.create_server(("127.0.0.1", 0))
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        await server.start([listener], tls)
        world = World(server, application, listener.getsockname(), lines)
        await talk(world)
        await server.stop(0.2)
        assert server.state.held == 0 and server.state.owed == 0
        assert server.state.connections() == 0
        assert [e for e in errors if not isinstance(e.get("exception"), KeyError)] == []

    run_in_order(run())
