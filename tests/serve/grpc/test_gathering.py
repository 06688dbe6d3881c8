"""Answers of one turn of the loop leave together, and no more of them than the client takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.serve.grpc.raw import block
from torchpar.serve.grpc import frames
from torchpar.serve.grpc.call import Call
from torchpar.serve.grpc.connection import Connection
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.state import ServerState
from torchpar.serve.limits import SMALL, Limits

# What a client allows that never waits.
WIDE = frames.settings({frames.WINDOW: frames.LARGEST}) + frames.window_update(0, frames.LARGEST - frames.FIRST_WINDOW)


class Transport:
    """Keeps each write; pauses its protocol as a real one does where the client takes nothing."""

    def __init__(self, takes: bool) -> None:
        self.writes: list[bytes] = []
        self.takes = takes
        self.protocol: Connection

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))
        if not self.takes and sum(map(len, self.writes)) > SMALL:
            self.protocol.pause_writing()

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def talk(do: Callable[[Connection, Transport, list[Call]], Awaitable[Any]], calls: int, *, takes: bool = True) -> Any:
    """A connection that has so many calls."""

    async def go() -> Any:
        state = ServerState(lambda exchange: None, Limits(), RequestLog(1.0))
        state.loop = asyncio.get_running_loop()
        begun: list[Call] = []
        transport = Transport(takes)
        transport.protocol = connection = Connection(state, ("127.0.0.1", 5), begun.append)
        connection.connection_made(transport)
        header = block(b"/a")
        asked = b"".join(frames.frame(frames.HEADERS, 5, 1 + 2 * number, header) for number in range(calls))
        connection.data_received(frames.PREFACE + WIDE + asked)
        assert len(begun) == calls
        transport.writes.clear()
        return await do(connection, transport, begun)

    return asyncio.run(go())


def streams_that_ended(data: bytes) -> list[int]:
    """The streams that have their end in these frames, in order."""
    found, offset = [], 0
    while offset < len(data):
        high, low, kind, flags, stream = frames.HEAD.unpack_from(data, offset)
        offset += frames.HEAD_SIZE + (high << 8 | low)
        if kind == frames.HEADERS and flags & frames.END_STREAM:
            found.append(stream)
    assert offset == len(data)
    return found


def test_answers_of_one_turn_leave_together() -> None:
    async def do(connection: Connection, transport: Transport, calls: list[Call]) -> None:
        for call in calls:
            call.respond([b"answer"])
        assert not transport.writes
        await asyncio.sleep(0)
        assert len(transport.writes) == 1
        assert streams_that_ended(transport.writes[0]) == [call.number for call in calls]

    talk(do, 8)


def test_the_answer_of_the_only_call_does_not_wait() -> None:
    async def do(connection: Connection, transport: Transport, calls: list[Call]) -> None:
        calls[0].respond([b"answer"])
        assert streams_that_ended(b"".join(transport.writes)) == [1]

    talk(do, 1)


def test_an_answer_that_was_gathered_leaves_before_later_ones() -> None:
    """Also where frames come, or the connection drains or ends, in the same turn."""

    async def do(connection: Connection, transport: Transport, calls: list[Call]) -> None:
        calls[0].respond([b"answer"])
        connection.data_received(frames.frame(frames.PING, 0, 0, b"12345678"))
        assert len(transport.writes) == 1
        calls[1].respond([b"answer"])
        calls[2].fail(13, "no")
        connection.start_drain()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sent = b"".join(transport.writes)
        assert streams_that_ended(sent) == [1, 3, 5]
        assert sent.index(b"12345678") < sent.index(b"answer", sent.index(b"answer") + 1)

    talk(do, 4)


def test_no_more_is_gathered_than_the_transport_would_keep() -> None:
    async def do(connection: Connection, transport: Transport, calls: list[Call]) -> None:
        piece = b"x" * (frames.FIRST_FRAME - 100)
        for call in calls:
            call.respond([piece])
        await asyncio.sleep(0)
        assert sum(map(len, transport.writes)) < 3 * SMALL
        transport.takes = True
        connection.resume_writing()
        assert sorted(streams_that_ended(b"".join(transport.writes))) == [call.number for call in calls]

    talk(do, 100, takes=False)
