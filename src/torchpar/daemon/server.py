"""The status socket: who connects gets one line of JSON and is hung up on. It reads nothing, so it takes no orders."""

from __future__ import annotations

import grp
import os
import pwd
import selectors
import socket
import struct
import time
from collections.abc import Callable

SOCKET = "/run/torchpar/torchpard.sock"
GROUP = "torchpar"

_MOST_CLIENTS = 32
_PATIENCE = 5.0  # seconds that a client may take to read its answer


class Server:
    """Listens at a path and sends each client what `answer` gives, without ever waiting for a client."""

    def __init__(self, path: str, selector: selectors.BaseSelector, answer: Callable[[], bytes]) -> None:
        self._answer = answer
        self._selector = selector
        self._clients: dict[socket.socket, tuple[bytes, float]] = {}
        if os.path.lexists(path):
            os.unlink(path)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o117)
        try:
            self._door.bind(path)
        finally:
            os.umask(before)
        self._door.listen(_MOST_CLIENTS)
        selector.register(self._door, selectors.EVENT_READ, self._accept)

    def drop_slow_clients(self) -> None:
        """Hang up on who has not read its answer in time."""
        now = time.monotonic()
        for client, (_, until) in list(self._clients.items()):
            if until < now:
                self._close(client)

    def _accept(self) -> None:
        try:
            client, _ = self._door.accept()
        except OSError:
            # It hung up before it was greeted, or there are too many open files; the next one may fare better.
            return
        client.setblocking(False)
        if len(self._clients) >= _MOST_CLIENTS or not may_ask(_peer_uid(client)):
            client.close()
            return
        self._clients[client] = (self._answer(), time.monotonic() + _PATIENCE)
        self._selector.register(client, selectors.EVENT_WRITE, lambda: self._write(client))

    def _write(self, client: socket.socket) -> None:
        rest, until = self._clients[client]
        try:
            rest = rest[client.send(rest) :]
        except BlockingIOError:
            return
        except OSError:
            rest = b""
        if rest:
            self._clients[client] = (rest, until)
        else:
            self._close(client)

    def _close(self, client: socket.socket) -> None:
        del self._clients[client]
        self._selector.unregister(client)
        client.close()


def may_ask(uid: int) -> bool:
    """Whether a user may see the status: root, and the members of the group torchpar."""
    if uid == 0:
        return True
    try:
        group = grp.getgrnam(GROUP).gr_gid
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return group in os.getgrouplist(user.pw_name, user.pw_gid)


def _peer_uid(client: socket.socket) -> int:
    """The user at the other end, by the kernel (SO_PEERCRED, unix(7))."""
    data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])
