"""Receives the messages of a call: whole, when they are wanted, within bounds and in time."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from asyncio import AbstractEventLoop
from typing import Protocol

from torchpar.serve.grpc import frames
from torchpar.serve.limits import NOT_HELD, SMALL, Limits

# The status of a call.
OK, CANCELLED, _, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = range(6)
PERMISSION_DENIED, RESOURCE_EXHAUSTED, _, _, _, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = range(7, 15)

# A message's own bytes around its tensors.
MARGIN = 1 << 20

# Before a message: whether it is compressed, and its size.
PREFIX = struct.Struct(">BI")


class Handler(Protocol):
    """Answers a call. `streams` says that it takes several messages."""

    streams: bool

    def wants(self) -> bool:
        """Says whether the next message may be handed on; when that changes, `Call.read_on` is to be called."""

    def message(self, data: bytes | memoryview, compressed: bool) -> None:
        """Takes a whole message; it counts as kept in memory until the call is over, or `Call.hold` says otherwise."""

    def ended(self) -> None:
        """Takes note that no further message comes."""

    def sent(self) -> None:
        """Takes note that all messages that the call was given are on their way."""

    def drain(self) -> None:
        """Waits for no further message."""

    def is_busy(self) -> bool:
        """Says whether something is being computed for the client."""

    def cancelled(self) -> None:
        """Takes note that nobody waits for answers any more."""


class Source(Protocol):
    """The connection that a call's messages come by. `reading_paused`: the client may send, and nothing is read."""

    limits: Limits
    loop: AbstractEventLoop
    reading_paused: bool

    def may_hold(self, missing: int, whole: int) -> bool:
        """Says whether the other `missing` bytes of a message of `whole` bytes may come."""

    def hold(self, size: int) -> None:
        """Counts so many bytes more, or less, that are kept of what the client sent."""

    def write(self, data: bytes) -> None:
        """Sends some bytes, now or with others."""


class Arriving(ABC):
    """The half of a call that reads. `over`: its status is known, and nothing more is read."""

    __slots__ = (
        "_buffer",
        "_due",
        "_ended",
        "_held",
        "_mark",
        "_received",
        "connection",
        "handler",
        "number",
        "over",
        "receive_window",
        "uncredited",
    )

    def __init__(self, connection: Source, number: int) -> None:
        self.connection: Source = connection
        self.number = number
        self.handler: Handler | None = None
        self.over = False
        self.receive_window = connection.limits.call_window
        self.uncredited = 0
        self._ended = False
        self._buffer = bytearray()
        self._held = 0  # bytes of the message that arrives, and of those that are in work
        self._due: float | None = None  # when it has been waited for long enough
        self._received = self._mark = 0

    @abstractmethod
    def fail(self, code: int, message: str, retry_after: float | None = None) -> None:
        """Ends the call."""

    def start(self, handler: Handler) -> None:
        """Takes messages."""
        self.handler = handler
        self._wait()

    def receive(self, piece: memoryview) -> None:
        """Takes bytes of messages."""
        handler = self.handler
        if handler is None or self.over:
            return
        self.uncredited += len(piece)
        self._received += len(piece)
        if not self._buffer and len(piece) >= PREFIX.size and handler.wants():
            compressed, size = PREFIX.unpack_from(piece)
            # Most messages come in one piece.
            connection = self.connection
            if size == len(piece) - PREFIX.size and connection.may_hold(size, size):
                self._held += size
                connection.hold(size)
                handler.message(bytes(piece[PREFIX.size :]), bool(compressed))
                self._credit()
                return
        self._buffer += piece
        self.hold(len(piece))
        self.read_on()

    def end(self) -> None:
        """Takes note that the client has sent all."""
        self._ended = True
        self._due = None
        self.read_on()

    def read_on(self) -> None:
        """Hands on the whole messages, while they are wanted."""
        limit = self.connection.limits.body + MARGIN
        while not self.over and self.handler is not None and len(self._buffer) >= PREFIX.size and self.handler.wants():
            compressed, size = PREFIX.unpack_from(self._buffer)
            whole = PREFIX.size + size
            missing = whole - len(self._buffer)
            if size > limit:
                self.fail(RESOURCE_EXHAUSTED, f"the message has {size} bytes; the limit is {limit}")
            elif (missing > 0 or size <= SMALL) and not self.connection.may_hold(max(missing, 0), whole):
                self.fail(UNAVAILABLE, NOT_HELD, 1.0)
            elif missing <= 0:
                self._hand_on(whole, bool(compressed))
            else:
                break
        if self.over or self.handler is None:
            return
        self._credit()
        if self._ended and self.handler.wants():
            if self._buffer:
                self.fail(INVALID_ARGUMENT, "the call ends within a message")
            else:
                self.handler.ended()
        else:
            self._wait()

    def _hand_on(self, whole: int, compressed: bool) -> None:
        data: bytes | memoryview
        if len(self._buffer) == whole:
            data, self._buffer = memoryview(self._buffer)[PREFIX.size :], bytearray()
        else:
            data = bytes(memoryview(self._buffer)[PREFIX.size : whole])
            del self._buffer[:whole]
        self.hold(len(data) - whole)
        if self.handler is not None:
            self.handler.message(data, compressed)

    def _wait(self) -> None:
        """Times the client, where the next move is its own; a call of many messages may rest between them."""
        handler = self.handler
        if self._ended or handler is None or (handler.streams and not (self._buffer and handler.wants())):
            self._due = None
        elif self._due is None:
            self._due = self.connection.loop.time() + self.connection.limits.body_seconds
            self._mark = self._received

    def _credit(self) -> None:
        """Lets the client send more, unless it is to wait."""
        handler = self.handler
        if self.uncredited * 2 >= self.connection.limits.call_window and not (self._ended or self.over):
            if handler is not None and handler.wants():
                self.receive_window += self.uncredited
                self.connection.write(frames.window_update(self.number, self.uncredited))
                self.uncredited = 0

    def hold(self, size: int) -> None:
        """Counts `size` bytes more, or less, that are kept of what the client sent."""
        self._held += size
        self.connection.hold(size)

    def has_ended(self) -> bool:
        """Says whether the client has sent all."""
        return self._ended

    def is_busy(self) -> bool:
        """Says whether the client waits for the server."""
        return self.handler is not None and self.handler.is_busy()

    def expire(self, now: float) -> None:
        """Ends the call if the client has been too slow; called now and then."""
        limits = self.connection.limits
        if self._due is None:
            return
        if self.connection.reading_paused:
            # The client may send, and we do not look: its time begins anew.
            self._mark, self._due = self._received, now + limits.body_seconds
        elif now > self._due:
            if self._received - self._mark < limits.body_rate * limits.body_seconds:
                self.fail(DEADLINE_EXCEEDED, "the request did not come in time")
                return
            self._mark, self._due = self._received, now + limits.body_seconds

    def drop_input(self) -> None:
        """Reads nothing more, and forgets what has come."""
        self._due = None
        self._buffer = bytearray()
        if self._held:
            self.connection.hold(-self._held)
            self._held = 0
