"""Counts what all connections of one process share, HTTP's and gRPC's, and says what one of them may still take."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import Callable

from torchpar.serve.http.eviction import Eviction
from torchpar.serve.http.exchange import REASONS, Exchange
from torchpar.serve.http.holding import choose_slow
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.parser import Head
from torchpar.serve.http.peer import Peer
from torchpar.serve.limits import ALL_SMALL, MANY_SMALL, SMALL, Limits
from torchpar.serve.usage import read_usage


class ServerState:
    """Counts of one server, and the connections that it has; it accepts none and times none, which `Server` does.

    `limits` are what this process may take of those of the service. `loop` is there from the server's start on. `held`
    counts the bytes of bodies that arrive and `owed` those of answers that clients have not taken; `answers` counts
    answers by status; `refused` counts requests that were not even read to their end; `calmed` counts connections that
    are not read for a moment, for they asked too much. `totals` is the `usage()` of all processes of the service where
    it has several. `tell_load` is given the number of connections when it changes; one that has several calls under way
    counts for as many.
    """

    def __init__(self, application: Callable[[Exchange], None], limits: Limits, log: RequestLog) -> None:
        self.application = application
        self._limits = limits
        self.limits = limits.part(1)
        self.log = log
        self.loop: asyncio.AbstractEventLoop
        self.heads: dict[bytes, Head] = {}
        self.draining = False
        self.held = 0
        self.owed = 0
        self.calmed = 0
        self.refused = 0
        self.answers: dict[int, int] = {}
        self.totals: dict[str, float] | None = None
        self.tell_load: Callable[[int], object] = lambda load: None
        self._further_calls = 0
        self._connections: set[Peer] = set()
        self._surplus: set[Peer] = set()
        self._eviction = Eviction()
        self._lines: dict[int, bytes] = {}
        self._lines_second = 0

    def divide_limits(self, processes: int) -> None:
        """Takes no more from now on than its part of what the service may, which has so many processes."""
        self.limits = self._limits.part(processes)

    def opened(self, connection: Peer) -> bool:
        """Takes a connection; False if it must go without a word."""
        if len(self._connections) < self.limits.connections or self._make_room(connection):
            self._connections.add(connection)
        elif len(self._surplus) < self.limits.connections:
            # These are told so, which takes a moment each; of twice as many there is no time for it.
            self._surplus.add(connection)
        else:
            return False
        self.tell_load(self._load())
        return True

    def weigh(self) -> None:
        """Sees what the connections have to do now."""
        self._further_calls = sum(max(0, peer.calls_under_way() - 1) for peer in self._connections)
        self.tell_load(self._load())

    def _load(self) -> int:
        return len(self._connections) + len(self._surplus) + self._further_calls

    def _make_room(self, connection: Peer) -> bool:
        gone = self._eviction.choose(self._connections, connection, self.loop.time())
        if gone is not None:
            self._connections.discard(gone)
            gone.make_way()
        return gone is not None

    def may_owe(self, size: int, owed: int) -> bool:
        """Says whether an answer of `size` bytes may wait to be taken where `owed` of its connection wait already.

        Of large ones each connection may have one, within what all may.
        """
        if size <= SMALL:
            return True
        if owed and owed + size > self.limits.owed_each:
            return False
        return not self.owed or self.owed + size <= self.limits.owed

    def small_each(self) -> int:
        """Returns the bytes of small messages that a connection may have beside what all may."""
        return min(MANY_SMALL, ALL_SMALL // max(1, len(self._connections)))

    def may_hold(self, size: int, newcomer: Peer | None = None) -> bool:
        """Says whether `size` more bytes of requests may come; gives up slow clients' bodies where that makes room."""
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
        """Returns all connections, and those that are one too many."""
        return [*self._connections, *self._surplus]

    def is_full(self, connection: Peer) -> bool:
        """Says whether the connection that has just come is one too many."""
        return connection in self._surplus

    def closed(self, connection: Peer) -> None:
        """Forgets a connection that is gone."""
        self._connections.discard(connection)
        self._surplus.discard(connection)
        self.tell_load(self._load())

    def connections(self) -> int:
        """Counts the connections."""
        return len(self._connections)

    def usage(self) -> dict[str, float]:
        """Returns the answers and the resources of this process, by name."""
        return read_usage(self.answers, self.refused, self.connections(), self.held)

    def usage_of_all(self) -> dict[str, float]:
        """Returns the answers and the resources of all the service's processes.

        Where it has several, they are as they were a second or two ago.
        """
        return self.totals or self.usage()

    def status_line(self, status: int) -> bytes:
        """Returns the status line and the Date field, made once a second for each status."""
        line = self._lines.get(status)
        if line is None:
            date = formatdate(time.time(), usegmt=True).encode()
            line = b"HTTP/1.1 %d %b\r\nDate: %b\r\n" % (status, REASONS.get(status, b"-"), date)
            self._lines[status] = line
        return line

    def forget_date(self, second: int) -> None:
        """Makes the Date field anew where the last one was of another second."""
        if second != self._lines_second:
            self._lines_second = second
            self._lines.clear()

    def finished(self, exchange: Exchange) -> None:
        """Counts an answer that was handed to the kernel."""
        self.answers[exchange.status] = self.answers.get(exchange.status, 0) + 1
        self.log.finished(exchange, self.loop.time() - exchange.received)
