"""Answers at the status socket: a client gets one line of JSON and is hung up on. Reads nothing, so takes no orders.

Every user has a few places. Whoever takes all of them and does not read, or comes again and again, has no answer and
takes nothing from others.
"""

from __future__ import annotations

import grp
import os
import pwd
import selectors
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

GROUP = "torchpar"

_MOST_OF_ROOT = 128
_MOST_OF_A_USER = 8
_MOST_OF_USERS = 128
# Those that wait at the door; whoever comes then is told to come again (EAGAIN).
_BACKLOG = 1024
_AT_ONCE = 64  # let in before anything else is done
_PATIENCE = 5.0  # seconds that a client may take to read its answer
_KNOWN_SECONDS = 5.0  # that the answer of the user database holds
_MOST_KNOWN = 1024


@dataclass(eq=False)
class Client:
    """A client that waits for an answer, or reads it: for which glance and then which look it waits, since when."""

    socket: socket.socket
    uid: int
    since: float
    glance: int = 0
    look: int | None = None
    rest: bytes | None = None


def may_ask(uid: int) -> bool:
    """Says whether a user may see the status, by the user database."""
    if uid == 0:
        return True
    try:
        group = grp.getgrnam(GROUP).gr_gid
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return group in os.getgrouplist(user.pw_name, user.pw_gid)


def read_peer_uid(client: socket.socket) -> int:
    """Reads the user at the other end, by the kernel (SO_PEERCRED, unix(7))."""
    data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])


@dataclass(frozen=True)
class Users:
    """The doors to who asks: the user at the other end of a connection, and whether that one may see the status."""

    read_uid: Callable[[socket.socket], int] = read_peer_uid
    may_ask: Callable[[int], bool] = may_ask


class Server:
    """Listens at a path and tells `asked` of each client, without ever waiting for one."""

    def __init__(
        self,
        path: str,
        mode: int,
        selector: selectors.BaseSelector,
        asked: Callable[[Server, Client], None],
        *,
        users: Users,
        clock: Callable[[], float],
    ) -> None:
        self._asked = asked
        self._selector = selector
        self._clients: set[Client] = set()
        self._read_uid = users.read_uid
        self._members = _Members(users.may_ask, clock)
        self._clock = clock
        if os.path.lexists(path):
            os.unlink(path)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o777 & ~mode)
        try:
            self._door.bind(path)
        finally:
            os.umask(before)
        self._door.listen(_BACKLOG)
        selector.register(self._door, selectors.EVENT_READ, self._accept)

    def waiting(self) -> list[Client]:
        """Returns the clients that have no answer yet."""
        return [client for client in self._clients if client.rest is None]

    def answer(self, client: Client, answer: bytes) -> None:
        """Gives a client its answer."""
        client.rest, client.since = answer, self._clock()
        self._selector.register(client.socket, selectors.EVENT_WRITE, lambda: self._write(client))

    def hang_up(self, client: Client) -> None:
        """Lets a client go, with or without its answer."""
        self._clients.discard(client)
        if client.rest is not None:
            self._selector.unregister(client.socket)
        client.socket.close()

    def drop_slow_clients(self) -> None:
        """Hangs up on clients that have not read their answer in time."""
        now = self._clock()
        for client in list(self._clients):
            if client.rest is not None and client.since + _PATIENCE < now:
                self.hang_up(client)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                door, _ = self._door.accept()
            except OSError:
                # Nobody is left, or it hung up before it was greeted, or there are too many open files.
                return
            door.setblocking(False)
            uid = self._read_uid(door)
            if not self._has_place(uid) or not self._members.may_ask(uid):
                door.close()
                continue
            client = Client(door, uid, self._clock())
            self._clients.add(client)
            self._asked(self, client)

    def _has_place(self, uid: int) -> bool:
        users = Counter(client.uid for client in self._clients)
        if uid == 0:
            return users[0] < _MOST_OF_ROOT
        return users[uid] < _MOST_OF_A_USER and users.total() - users[0] < _MOST_OF_USERS

    def _write(self, client: Client) -> None:
        assert client.rest is not None
        try:
            client.rest = client.rest[client.socket.send(client.rest) :]
        except BlockingIOError:
            return
        except OSError:
            client.rest = b""
        if not client.rest:
            self.hang_up(client)


class _Members:
    """The users who may see the status: root and the group torchpar. Asks the user database only now and then."""

    def __init__(self, ask: Callable[[int], bool], clock: Callable[[], float]) -> None:
        self._ask, self._clock = ask, clock
        self._known: dict[int, tuple[float, bool]] = {}

    def may_ask(self, uid: int) -> bool:
        """Says whether a user may see the status, by an answer that is a few seconds old at the most."""
        now = self._clock()
        until, answer = self._known.get(uid, (0.0, False))
        if now > until:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            answer = self._ask(uid)
            self._known[uid] = now + _KNOWN_SECONDS, answer
        return answer
