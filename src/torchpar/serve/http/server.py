"""Accepts the connections of one process, keeps their clock, and drains them."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from torchpar.contract.journal import Priority, say
from torchpar.serve.http.connection import Connection
from torchpar.serve.http.exchange import Exchange
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.peer import Peer
from torchpar.serve.http.state import ServerState
from torchpar.serve.limits import Limits
from torchpar.serve.trim import PAUSE, Trimmer

if TYPE_CHECKING:
    from ssl import SSLContext

SWEEP_SECONDS = 0.5

Make = Callable[[Any], Peer]


class Server:
    """Accepts connections and hands whole requests to `application`, which answers each exchange once, now or later.

    Everything happens on the event loop that `start` is called on. `state` is what its connections share.
    """

    def __init__(self, application: Callable[[Exchange], None], limits: Limits, log: RequestLog) -> None:
        self.state = ServerState(application, limits, log)
        self.loop: asyncio.AbstractEventLoop
        self._trim = Trimmer()
        self._trim_at = 0.0
        self._listeners: list[socket.socket] = []
        self._handshakes: dict[asyncio.Task[Any], None] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, sockets: Sequence[socket.socket], tls: SSLContext | None = None) -> None:
        """Accepts on sockets that are bound and listen already, as systemd hands them over."""
        self.loop = self.state.loop = asyncio.get_running_loop()
        for listener in sockets:
            self.listen(listener, partial(Connection, self.state), tls)
        self._sweep()

    def listen(self, listener: socket.socket, make: Make, tls: SSLContext | None = None) -> None:
        """Accepts on a socket; make gets the other end's address and makes the protocol of a connection."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self.loop.add_reader(listener, self._accept, listener, make, tls)

    def listen_no_more(self, listener: socket.socket) -> None:
        """Accepts no more there."""
        self._listeners.remove(listener)
        self.loop.remove_reader(listener)

    async def stop(self, grace: float) -> None:
        """Accepts no more, lets every connection have the answers that are due, and closes.

        grace is in seconds: an idle connection stays open for a tenth of it, so that a request that is on its way is
        still answered (with Connection: close); what is not answered after the whole of it is cut off.
        """
        self.state.draining = True
        for listener in self._listeners:
            self.loop.remove_reader(listener)
        end = self.loop.time() + grace
        idle_end = self.loop.time() + grace / 10
        while (self.state.all_connections() or self._handshakes) and self.loop.time() < end:
            await asyncio.sleep(min(0.02, grace / 10))
            if self.loop.time() >= idle_end:
                for connection in self.state.all_connections():
                    connection.drain()
        for connection in self.state.all_connections():
            connection.abort()
        await asyncio.sleep(0)
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _accept(self, listener: socket.socket, make: Make, tls: SSLContext | None) -> None:
        """Takes one connection of those that wait.

        Not all at once, as asyncio's own servers do: other processes accept on the same socket, and whoever woke up
        first would have them all. Nor is the socket's backlog set, which is its owner's.
        """
        try:
            sock, peer = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process took it, or the client has gone
        except OSError as error:
            # For example no file descriptors: it would be tried again at once, and for ever.
            say(f"cannot accept connections for a second: {error.strerror}", Priority.WARNING)
            self.loop.remove_reader(listener)
            self.loop.call_later(1.0, self._accept_again, listener, make, tls)
            return
        self.take(sock, make(peer), tls)

    def take(self, sock: socket.socket, connection: Peer, tls: SSLContext | None = None) -> None:
        """Serves a connection that was accepted."""
        sock.setblocking(False)
        task = self.loop.create_task(self._handshake(sock, connection, tls))
        self._handshakes[task] = None
        task.add_done_callback(self._handshakes.pop)
        if len(self._handshakes) > self.state.limits.connections:
            next(iter(self._handshakes)).cancel()

    def _accept_again(self, listener: socket.socket, make: Make, tls: SSLContext | None) -> None:
        if not self.state.draining and listener in self._listeners:
            self.loop.add_reader(listener, self._accept, listener, make, tls)

    async def _handshake(self, sock: socket.socket, connection: Peer, tls: SSLContext | None) -> None:
        patience: dict[str, Any] = {}
        if tls:
            # A connection is only counted once its handshake is done: that must not take long either.
            patience["ssl_handshake_timeout"] = self.state.limits.header_seconds
            if sys.version_info >= (3, 11):
                patience["ssl_shutdown_timeout"] = self.state.limits.linger_seconds
        try:
            await self.loop.connect_accepted_socket(lambda: connection, sock, ssl=tls, **patience)
        except OSError:
            # It went before TLS was agreed on, or speaks something else: ssl.SSLError is one of these.
            sock.close()

    def _trimmed(self, wait: asyncio.Future[None]) -> None:
        if wait.cancelled():
            return
        error = wait.exception()
        if error is not None:
            say(f"cannot give memory back, which is tried again in {PAUSE:.0f} seconds: {error}", Priority.WARNING)
        self._trim_at = self.loop.time() + PAUSE

    def _sweep(self) -> None:
        """Calls `expire` of all connections: one timer for all of them costs a request nothing."""
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)  # first, for it must go on whatever happens
        self.state.forget_date(int(time.time()))
        now = self.loop.time()
        for connection in self.state.all_connections():
            connection.expire(now)
        self.state.weigh()
        if now >= self._trim_at:
            self._trim_at = float("inf")
            self.loop.run_in_executor(None, self._trim).add_done_callback(self._trimmed)
