"""Accepts all connections of a service, and passes each to the process that has least to do.

Where processes accept for themselves, chance decides who gets a connection, and one that is kept stays where it is.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Sequence
from typing import Any, Callable

from torchpar.contract.journal import Priority, say
from torchpar.serve.supervisor.member import Member

# Of one socket, until others have their turn.
_AT_ONCE = 32
# Seconds until it is tried again: where no process has room in its channel, and where the kernel gives no connection.
_FULL_SECONDS, _REFUSED_SECONDS = 0.01, 1.0


class Acceptor:
    """Accepts while there is a process that takes connections; meanwhile, the kernel keeps them."""

    def __init__(
        self, listeners: Sequence[tuple[str, socket.socket]], choose: Callable[[], Sequence[Member]]
    ) -> None:
        """listeners: sockets that listen, each with its protocol. choose: who may be passed a connection now."""
        self._listeners = listeners
        self._choose = choose
        self._loop: asyncio.AbstractEventLoop
        self._accepts = False
        self._stopped = False
        self._numbers = itertools.count(1)
        self._kept: tuple[socket.socket, str, Any] | None = None  # which no process had room for

    def resume(self) -> None:
        """Accepts, where there is a process to take connections; call it when that may have changed."""
        if self._accepts or self._stopped or not self._choose():
            return
        self._accepts = True
        self._loop = asyncio.get_running_loop()
        for protocol, listener in self._listeners:
            listener.setblocking(False)
            self._loop.add_reader(listener, self._accept, protocol, listener)
        if self._kept:
            kept, self._kept = self._kept, None
            self._pass(*kept)

    def stop(self) -> None:
        """Accepts no more: who connects is refused, but where systemd has the socket too, which keeps them waiting."""
        self._pause()
        self._stopped = True
        for _, listener in self._listeners:
            listener.close()
        if self._kept:
            # Of a service that stops while all of its processes are stuck.
            self._kept[0].close()

    def _pause(self, seconds: float | None = None) -> None:
        if self._accepts:
            self._accepts = False
            for _, listener in self._listeners:
                self._loop.remove_reader(listener)
        if seconds is not None:
            self._loop.call_later(seconds, self.resume)

    def _accept(self, protocol: str, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if not self._choose():
                self._pause()
            if not self._accepts:
                return
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # For example no file descriptors: it would be tried again at once, and for ever.
                say(f"cannot accept connections for a second: {error.strerror}", Priority.WARNING)
                self._pause(_REFUSED_SECONDS)
                return
            # Bytes are an abstract address, which JSON has not, and the log has no use for.
            self._pass(sock, protocol, "" if isinstance(peer, bytes) else peer)

    def _pass(self, sock: socket.socket, protocol: str, peer: Any) -> None:
        for process in sorted(self._choose(), key=Member.has_to_do):
            if process.pass_connection(sock, protocol, peer, next(self._numbers)):
                sock.close()
                return
        self._kept = sock, protocol, peer
        self._pause(_FULL_SECONDS)
