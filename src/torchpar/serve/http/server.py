"""All connections of one process: their limits together, their clock, the counts of answers, and the drain."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Sequence
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from torchpar.serve.http.connection import Connection
from torchpar.serve.http.exchange import REASONS, Exchange
from torchpar.serve.http.holding import choose_slow
from torchpar.serve.http.limits import SMALL, Limits
from torchpar.serve.http.log import say
from torchpar.serve.http.parser import Head
from torchpar.serve.http.peer import Peer
from torchpar.serve.http.places import Places
from torchpar.serve.trim import PAUSE, Trimmer
from torchpar.serve.usage import read_usage

if TYPE_CHECKING:
    from ssl import SSLContext

    from torchpar.serve.http.log import RequestLog

SWEEP_SECONDS = 0.5


Make = Callable[[Any], Peer]


class Server:
    """Accepts connections and hands whole requests to `application`, which answers each exchange once, now or later.

    Everything happens on the event loop that `start` is called on. `held` counts the bytes of bodies that arrive and
    `owed` those of answers that clients have not taken, over gRPC too; `answers` counts answers by status; `refused`
    counts requests that were not even read to their end. `totals` is the `usage()` of all processes of the service
    where it has several. `make_parser`: None takes the fastest that this interpreter has.
    """

    def __init__(
        self,
        application: Callable[[Exchange], None],
        limits: Limits,
        log: RequestLog,
    ) -> None:
        self.heads: dict[bytes, Head] = {}
        self.application = application
        self.limits = limits
        self.log = log
        self.loop: asyncio.AbstractEventLoop
        self.draining = False
        self.held = 0
        self.owed = 0
        self.calmed = 0  # connections that are not read for a moment, for they asked too much
        self._trim = Trimmer()
        self._trim_at = 0.0
        self.refused = 0
        self.answers: dict[int, int] = {}
        self.totals: dict[str, float] | None = None
        self._connections: set[Peer] = set()
        self._surplus: set[Peer] = set()
        self._lines: dict[int, bytes] = {}
        self._lines_second = 0
        self._listeners: list[socket.socket] = []
        self._places = Places()
        self._handshakes: dict[asyncio.Task[Any], None] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, sockets: Sequence[socket.socket], tls: SSLContext | None = None) -> None:
        """Accept on sockets that are bound and listen already, as systemd hands them over."""
        self.loop = asyncio.get_running_loop()
        for listener in sockets:
            self.listen(listener, partial(Connection, self), tls)
        self._sweep()

    def listen(self, listener: socket.socket, make: Make, tls: SSLContext | None = None) -> None:
        """Accept on a socket; make is given the other end's address, and makes what speaks for us."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self.loop.add_reader(listener, self._accept, listener, make, tls)

    def listen_no_more(self, listener: socket.socket) -> None:
        """Accept no more there."""
        self._listeners.remove(listener)
        self.loop.remove_reader(listener)

    async def stop(self, grace: float) -> None:
        """Accept no more, let every connection have the answers that are due, and close.

        grace is in seconds: an idle connection stays open for a tenth of it, so that a request that is on its way is
        still answered (with Connection: close); what is not answered after the whole of it is cut off.
        """
        self.draining = True
        for listener in self._listeners:
            self.loop.remove_reader(listener)
        end = self.loop.time() + grace
        idle_end = self.loop.time() + grace / 10
        while (self._connections or self._surplus or self._handshakes) and self.loop.time() < end:
            await asyncio.sleep(min(0.02, grace / 10))
            if self.loop.time() >= idle_end:
                for connection in self.all_connections():
                    connection.drain()
        for connection in self.all_connections():
            connection.abort()
        await asyncio.sleep(0)
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _accept(self, listener: socket.socket, make: Make, tls: SSLContext | None) -> None:
        """Take one connection of those that wait.

        Not all at once, as asyncio's own servers do: other processes accept on the same socket, and whoever woke up
        first would have them all. Nor is the socket's backlog set, which is its owner's.
        """
        try:
            sock, peer = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process took it, or the client has gone
        except OSError as error:
            # For example no file descriptors: it would be tried again at once, and for ever.
            say(f"cannot accept connections for a second: {error.strerror}")
            self.loop.remove_reader(listener)
            self.loop.call_later(1.0, self._accept_again, listener, make, tls)
            return
        sock.setblocking(False)
        task = self.loop.create_task(self._handshake(sock, make(peer), tls))
        self._handshakes[task] = None
        task.add_done_callback(self._handshakes.pop)
        if len(self._handshakes) > self.limits.connections:
            next(iter(self._handshakes)).cancel()

    def _accept_again(self, listener: socket.socket, make: Make, tls: SSLContext | None) -> None:
        if not self.draining and listener in self._listeners:
            self.loop.add_reader(listener, self._accept, listener, make, tls)

    async def _handshake(self, sock: socket.socket, connection: Peer, tls: SSLContext | None) -> None:
        patience: dict[str, Any] = {}
        if tls:
            # A connection is only counted once its handshake is done: that must not take long either.
            patience["ssl_handshake_timeout"] = self.limits.header_seconds
            if sys.version_info >= (3, 11):
                patience["ssl_shutdown_timeout"] = self.limits.linger_seconds
        try:
            await self.loop.connect_accepted_socket(lambda: connection, sock, ssl=tls, **patience)
        except OSError:
            # It went before TLS was agreed on, or speaks something else: ssl.SSLError is one of these.
            sock.close()

    # ---- for connections ----

    def opened(self, connection: Peer) -> bool:
        """A connection is there; False if it must go without a word."""
        if len(self._connections) < self.limits.connections or self._make_room(connection):
            self._connections.add(connection)
        elif len(self._surplus) < self.limits.connections:
            # These are told so, which takes a moment each; of twice as many there is no time for it.
            self._surplus.add(connection)
        else:
            return False
        return True

    def _make_room(self, connection: Peer) -> bool:
        gone = self._places.make(self._connections, connection, self.loop.time())
        if gone is not None:
            self._connections.discard(gone)
            gone.make_way()
        return gone is not None

    def may_owe(self, size: int, owed: int) -> bool:
        """Whether an answer may wait to be taken, where its connection's `owed` bytes do.

        Of large ones each connection may have one, within what all may.
        """
        if size <= SMALL:
            return True
        if owed and owed + size > self.limits.owed_each:
            return False
        return not self.owed or self.owed + size <= self.limits.owed

    def may_hold(self, size: int, newcomer: Peer | None = None) -> bool:
        """Whether so many bytes of requests may come, of the newcomer; slow ones may have to go for that."""
        missing = self.held + size - self.limits.held
        if missing <= 0:
            return True
        slow = choose_slow(
            self._connections, newcomer, missing=missing, quick_rate=self.limits.quick_rate, now=self.loop.time()
        )
        for peer in slow:
            peer.give_up()
        return bool(slow)

    def all_connections(self) -> list[Peer]:
        """Those that there are."""
        return [*self._connections, *self._surplus]

    def is_full(self, connection: Peer) -> bool:
        """Whether the connection that has just come is one too many."""
        return connection in self._surplus

    def closed(self, connection: Peer) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._surplus.discard(connection)

    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    def usage(self) -> dict[str, float]:
        """What this process has answered and uses."""
        return read_usage(self.answers, self.refused, self.connections(), self.held)

    def usage_of_all(self) -> dict[str, float]:
        """What the processes of the service have answered and use: of several, as it was a second or two ago."""
        return self.totals or self.usage()

    def status_line(self, status: int) -> bytes:
        """The status line and the Date field, made once a second for each status."""
        line = self._lines.get(status)
        if line is None:
            date = formatdate(time.time(), usegmt=True).encode()
            line = b"HTTP/1.1 %d %b\r\nDate: %b\r\n" % (status, REASONS.get(status, b"-"), date)
            self._lines[status] = line
        return line

    def finished(self, exchange: Exchange) -> None:
        """An answer has been handed to the kernel."""
        self.answers[exchange.status] = self.answers.get(exchange.status, 0) + 1
        self.log.finished(exchange, self.loop.time() - exchange.received)

    def _trimmed(self, wait: asyncio.Future[None]) -> None:
        if wait.cancelled():
            return
        error = wait.exception()
        if error is not None:
            say(f"cannot give memory back, which is tried again in {PAUSE:.0f} seconds: {error}")
        self._trim_at = self.loop.time() + PAUSE

    def _sweep(self) -> None:
        """The clock of all connections: one timer for all of them costs a request nothing."""
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)  # first, for it must go on whatever happens
        second = int(time.time())
        if second != self._lines_second:
            self._lines_second = second
            self._lines.clear()
        now = self.loop.time()
        for connection in self.all_connections():
            connection.expire(now)
        if now >= self._trim_at:
            self._trim_at = float("inf")
            self.loop.run_in_executor(None, self._trim).add_done_callback(self._trimmed)
