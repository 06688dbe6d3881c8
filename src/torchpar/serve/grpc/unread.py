"""Answers that clients over gRPC have not taken: counted with those over HTTP, and clients that take nothing cut off.

gRPC holds them and says nothing of them; but a call ends when its answer is taken, and the kernel knows of a connection
what the other end has acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from dataclasses import dataclass
from urllib.parse import unquote

from torchpar.serve.errors import ServeError
from torchpar.serve.http.limits import NOT_TAKEN
from torchpar.serve.http.server import SMALL, Server

# tcpi_bytes_acked in the kernel's struct tcp_info.
_ACKED_AT, _ACKED = 120, struct.Struct("=Q")
_PEER = re.compile(r"ipv[46]:\[?([^\]]*)\]?:(\d+)")


@dataclass
class _Client:
    owed: int  # bytes of answers that are computed
    due: int  # of these, what gRPC has been given: others wait for their turn in a stream
    since: float  # when it last took something, or had nothing due
    acked: int | None = None


class Unread:
    """All connections of a gRPC server, by what `context.peer()` says. Belongs to the event loop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._clients: dict[str, _Client] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, peer: str, size: int) -> int:
        """Count an answer for this client; returns what counts of it. Raises ServeError 503 where it may not wait."""
        if size <= SMALL:
            return 0
        client = self._clients.get(peer)
        if not self._server.may_owe(size, client.owed if client else 0):
            raise ServeError(503, NOT_TAKEN, 1.0)
        loop = asyncio.get_running_loop()
        if client is None:
            client = self._clients[peer] = _Client(0, 0, loop.time())
        client.owed += size
        self._server.owed += size
        if self._timer is None:
            self._timer = loop.call_later(self._server.limits.write_seconds / 3, self._sweep)
        return size

    def give(self, peer: str, size: int) -> None:
        """gRPC gets so many of the bytes that counted: from now on the client is to take them."""
        if size:
            client = self._clients[peer]
            if not client.due:
                client.since = asyncio.get_running_loop().time()
            client.due += size

    def remove(self, peer: str, size: int, given: int) -> None:
        """So many of the bytes that counted, and that were given, are taken, or nobody waits for them any more."""
        if size:
            self._server.owed -= size
            client = self._clients[peer]
            client.owed -= size
            client.due -= given
            client.since = asyncio.get_running_loop().time()
            if not client.owed:
                del self._clients[peer]

    def _sweep(self) -> None:
        self._timer = None
        if not self._clients:
            return
        loop = asyncio.get_running_loop()
        now, patience = loop.time(), self._server.limits.write_seconds
        self._timer = loop.call_later(patience / 3, self._sweep)
        connections = _connections()
        for peer, client in self._clients.items():
            connection = connections.get(_address(peer))
            if connection is None or not client.due:
                continue
            try:
                told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                (acked,) = _ACKED.unpack_from(told, _ACKED_AT)
                if client.acked is None or acked > client.acked + SMALL:  # pings and the like are smaller
                    client.acked, client.since = acked, now if client.acked is not None else client.since
                elif now - client.since >= patience:
                    connection.shutdown(socket.SHUT_RDWR)
            except (OSError, struct.error):
                continue  # it is gone, or this kernel does not tell
        for connection in connections.values():
            connection.close()


def _address(peer: str) -> tuple[str, int] | None:
    match = _PEER.fullmatch(unquote(peer))
    return (match[1], int(match[2])) if match else None


def _connections() -> dict[tuple[str, int] | None, socket.socket]:
    """This process's TCP connections by the other end's address, of which gRPC keeps the descriptors to itself."""
    found: dict[tuple[str, int] | None, socket.socket] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                host, port = connection.getpeername()[:2]
                found[host.rpartition("::ffff:")[2], port] = connection
                continue
        except OSError:
            pass  # it listens, or is gone
        connection.close()
    return found
