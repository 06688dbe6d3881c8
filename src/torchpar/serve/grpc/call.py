"""One call of gRPC, a stream of HTTP/2: messages in, messages out, and a status at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torchpar.serve.grpc import frames, hpack
from torchpar.serve.grpc.arriving import OK, PREFIX, Arriving, Source
from torchpar.serve.grpc.fields import Asked

_FIRST = b"\x88" + hpack.encode(
    ((b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity, deflate, gzip"))
)
_DONE = hpack.encode(((b"grpc-status", b"0"),))


class Link(Source, Protocol):
    """The connection of a call, both ways.

    `window` is what the client allows to be sent on all of it, `first_window` what it allows each call at first;
    `frame_size` is the largest frame.
    `working` counts the messages of streams that are being computed; `draining`: no further call is to be made.
    """

    window: int
    first_window: int
    frame_size: int
    working: int
    draining: bool

    def may_owe(self, size: int) -> bool:
        """Says whether an answer of `size` bytes may wait until the client takes it."""

    def count_owed(self, size: int) -> None:
        """Counts so many bytes of answers that wait more, or less."""

    def may_send(self, call: Call, size: int) -> bool:
        """Says whether `size` bytes of a call can go at once, before those of others."""

    def block(self, block: bytes) -> bytes:
        """Returns a header block as it is to be sent next."""

    def gather(self, size: int) -> None:
        """Keeps what is written until the turn of the loop is over, where answers besides this one may come."""

    def sends(self, call: Call) -> None:
        """Gives a call its turn: it has something to send, or its end."""

    def forget(self, call: Call) -> None:
        """Takes leave of a call that has its answer."""

    def reset(self, call: Call, code: int) -> None:
        """Ends a call without an answer."""


class Call(Arriving):
    """`deadline` is the client's, in the loop's time; `local` whether it is on this host.

    `begun` is when its header came, and `cost` what that takes of the connection's allowance if it is reset at once.
    """

    __slots__ = (
        "_begun",
        "_out",
        "_owed",
        "begun",
        "blocked",
        "cost",
        "deadline",
        "encoding",
        "last",
        "local",
        "path",
        "queued",
        "unsent_since",
        "window",
    )

    connection: Link

    def __init__(self, connection: Link, number: int, asked: Asked) -> None:
        super().__init__(connection, number)
        self.begun = connection.loop.time()
        self.path = asked.path
        self.encoding = asked.encoding
        self.local = asked.local
        self.deadline = None if asked.timeout is None else self.begun + asked.timeout
        self.cost = 0
        self.window = connection.first_window
        self.last: bytes | None = None
        self.queued = False  # has its turn to send
        self.blocked: float | None = None  # since when its own window is used up
        self.unsent_since: float | None = None  # as the clock has seen it
        self._begun = False
        self._out: list[memoryview] = []  # a deque would be as large as all else of a call
        self._owed = 0

    def expire(self, now: float) -> None:
        """Ends the call if the client has been too slow; called now and then."""
        super().expire(now)
        if not self._out:
            self.unsent_since = None
        elif self.unsent_since is None:
            self.unsent_since = now
        if self.blocked is not None and now > self.blocked + self.connection.limits.write_seconds:
            self.connection.reset(self, frames.CANCEL)

    def remaining(self) -> float | None:
        """Returns the seconds that the client still waits; None where it waits for ever."""
        return None if self.deadline is None else max(0.0, self.deadline - self.connection.loop.time())

    def owe(self, size: int) -> bool:
        """Counts an answer of so many bytes until the call is over or `settle`; False: it may not wait."""
        connection = self.connection
        if self.over or not connection.may_owe(size):
            return False
        self._owed += size
        connection.count_owed(size)
        return True

    def settle(self, size: int) -> None:
        """Counts an answer as taken, or forgotten, that `owe` has counted."""
        size = min(size, self._owed)
        self._owed -= size
        self.connection.count_owed(-size)

    def respond(self, pieces: Sequence[bytes]) -> None:
        """Sends the only message, whose pieces these are, and the status OK. It counts as owed, see `owe`."""
        whole = sum(map(len, pieces))
        connection, size = self.connection, PREFIX.size + whole
        if self.over:
            return
        if self._begun or size > connection.frame_size or not connection.may_send(self, size):
            self.send(b"".join(pieces))
            self.finish(OK)
            return
        connection.gather(size)
        connection.window -= size
        number, first = self.number, connection.block(_FIRST)
        connection.write(
            b"".join(
                (
                    frames.head(frames.HEADERS, frames.END_HEADERS, number, len(first)), first,
                    frames.head(frames.DATA, 0, number, size), PREFIX.pack(False, whole), *pieces,
                    frames.head(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number, len(_DONE)), _DONE,
                )
            )
        )  # fmt: skip
        self.over = True
        connection.forget(self)

    def send(self, data: bytes) -> None:
        """Sends a message."""
        if self.over:
            return
        if not self._begun:
            self._begun = True
            first = self.connection.block(_FIRST)
            self.connection.write(frames.frame(frames.HEADERS, frames.END_HEADERS, self.number, first))
        self._out += (memoryview(PREFIX.pack(False, len(data))), memoryview(data))
        self.connection.sends(self)

    def unsent(self) -> int:
        """Returns the number of bytes that wait to be sent."""
        return sum(map(len, self._out))

    def sent(self) -> None:
        """Tells the handler that all that waited is on its way."""
        if self.handler is not None:
            self.handler.sent()

    def drain(self) -> None:
        """Tells the handler that the connection is to end when nothing is due."""
        if self.handler is not None:
            self.handler.drain()

    def take(self, size: int) -> bytes:
        """Takes `size` of the bytes that wait, or as many as there are."""
        taken: list[memoryview] = []
        while self._out and size:
            piece = self._out.pop(0)
            if len(piece) > size:
                self._out.insert(0, piece[size:])
                piece = piece[:size]
            size -= len(piece)
            taken.append(piece)
        return b"".join(taken)

    def finish(self, code: int, message: str = "", retry_after: float | None = None) -> None:
        """Sends the status, after all messages."""
        if self.over:
            return
        fields = [(b"grpc-status", b"%d" % code)]
        if message:
            fields.append((b"grpc-message", _escape(message)))
        if retry_after is not None:
            # gRPC's retry design, gRFC A6: a client with a retry policy is told when to try again.
            fields.append((b"grpc-retry-pushback-ms", b"%d" % round(retry_after * 1000)))
        self.last = (b"" if self._begun else _FIRST) + hpack.encode(tuple(fields))
        self._end()

    def decline(self, status: int) -> None:
        """Answers what is no call of gRPC, as HTTP does."""
        if not self.over:
            self.last = hpack.encode(((b":status", b"%d" % status),))
            self._end()

    def fail(self, code: int, message: str, retry_after: float | None = None) -> None:
        """Sends the status at once; what is being computed for this call is not wanted any more."""
        if not self.over:
            self._out.clear()
            handler = self.handler
            self.finish(code, message, retry_after)
            if handler is not None:
                handler.cancelled()

    def _end(self) -> None:
        self.over = True
        self.drop_input()
        self.connection.sends(self)

    def drop(self) -> bool:
        """Forgets the call; says whether the client has sent all of it."""
        self.over = True
        handler, self.handler = self.handler, None
        self._out.clear()
        self.last = None
        self.blocked = None
        self.drop_input()
        self.settle(self._owed)
        if handler is not None:
            handler.cancelled()
        return self._ended


def _escape(message: str) -> bytes:
    """Escapes a text for grpc-message: printable ASCII stays, all else is percent-encoded."""
    return b"".join(
        bytes((byte,)) if 32 <= byte < 127 and byte != 37 else b"%%%02X" % byte for byte in message.encode()
    )
