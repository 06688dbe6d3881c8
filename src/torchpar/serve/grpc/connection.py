"""One client's connection over HTTP/2: frames in, frames out, and everything a client may do wrong.

It is written here, for what the library for gRPC takes of a client cannot be bounded: it keeps what arrives of every
message, however many there are, and all that is known of them is that one is whole.

A client that sends what costs work and asks for nothing, such as streams that it resets, pings or settings, is read
slowly: each of these takes from an allowance, which finished calls and time fill up again, and who goes on for long is
cut off. So nobody is who does no harm, and none of them has more than a small part of the server's time.
"""

from __future__ import annotations

import asyncio
from typing import Any, Callable

from torchpar.serve.grpc import frames, hpack
from torchpar.serve.grpc.call import Call
from torchpar.serve.grpc.frames import HEAD, HEAD_SIZE, PREFACE, ConnectionFailed
from torchpar.serve.grpc.taking import TURN, Taking
from torchpar.serve.http.state import ServerState

# How long a client that has used it up is not read, and what it gains by that.
CALM_SECONDS = 0.1
CALM_GAIN = 20


class Connection(Taking):
    """The asyncio protocol, its clock, and the calm that is imposed on clients that ask too much."""

    def __init__(self, state: ServerState, peer: Any, application: Callable[[Call], None]) -> None:
        """peer: the other end's address as accept(2) gave it; application is given each call that begins."""
        super().__init__(state, peer, application)
        self._rest = b""
        self._begun = False  # its preface is there
        self._since: float | None = self.loop.time()  # when it began what is not whole yet
        self._calm: asyncio.TimerHandle | None = None
        self._calms = 0  # one after another
        self._soon: asyncio.Handle | None = None  # reads on in the next turn of the loop

    # ---- from asyncio ----

    def connection_made(self, transport: Any) -> None:
        """Begins, when a client has connected."""
        self._transport = transport
        if not self.state.opened(self):
            transport.abort()
            return
        if self.state.is_full(self):
            self.close(frames.CALM, f"there are {self.limits.connections} connections already")
            return
        self.write(
            frames.settings(
                {
                    frames.CONCURRENT: self.limits.calls,
                    frames.WINDOW: self.limits.call_window,
                    frames.HEADER_LIST: self.limits.header,
                }
            )
            + frames.window_update(0, self.limits.connection_window - frames.FIRST_WINDOW)
        )

    def data_received(self, data: bytes) -> None:
        """Takes bytes from the client."""
        if self.closed:
            return
        self._rest = self._rest + data if self._rest else data
        self._read()

    def eof_received(self) -> None:
        """Ends: the client sends no more, and so is gone."""

    def connection_lost(self, error: Exception | None) -> None:
        """Ends, when the client has gone, or we have closed."""
        self.drop_calls()
        self._rest = b""
        self._since = None
        if self._calm is not None:
            self._calm.cancel()
            self._calm = None
            self.state.calmed -= 1
        if self._soon is not None:
            self._soon.cancel()
        self.state.closed(self)

    def pause_writing(self) -> None:
        """Sends no more for now: the client takes its answers more slowly than they come."""
        self.write_paused = True
        self._update_reading()

    def resume_writing(self) -> None:
        """Sends again: the client has caught up."""
        self.write_paused = False
        self._update_reading()
        self.pump()

    # ---- frames in ----

    def _read(self) -> None:  # noqa: C901 - a branch for each state of a connection
        """Takes the frames that are whole, as far as the allowance goes."""
        data, offset = self._rest, 0
        if not self._begun:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                self.close(frames.PROTOCOL_ERROR, "this is not HTTP/2")
                return
            if len(data) < len(PREFACE):
                return
            self._begun, offset = True, len(PREFACE)
        self.turn = TURN
        self.cork()
        view, size = memoryview(data), len(data)
        try:
            while size - offset >= HEAD_SIZE and self.allowance > 0 and self.turn > 0 and not self.closed:
                high, low, kind, flags, stream = HEAD.unpack_from(data, offset)
                length = high << 8 | low
                if length > frames.FIRST_FRAME:
                    raise ConnectionFailed(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                end = offset + HEAD_SIZE + length
                if end > size:
                    break
                self.take(kind, flags, stream & frames.LARGEST, view[offset + HEAD_SIZE : end])
                offset = end
        except ConnectionFailed as error:
            self.close(error.code, str(error))
        except hpack.HpackError as error:
            self.close(frames.COMPRESSION_ERROR, str(error))
        self._rest = data[offset:]
        self.uncork()
        if self.closed:
            self._rest = b""
            return
        if self.allowance <= 0:
            self._start_calm()
            return
        if self.turn <= 0:
            self._wait_a_turn()
            return
        self._calms = 0
        if not self._rest and not self.has_open_header():
            self._since = None
        elif self._since is None or offset and not self.has_open_header():
            self._since = self.loop.time()

    # ---- time ----

    def calls_under_way(self) -> int:
        """Counts the calls that are not finished."""
        return len(self.calls)

    def expire(self, now: float) -> None:
        """Ends the connection if the client has been too slow; the server calls it now and then."""
        if self._since is not None and self.reading_paused:
            self._since = now
        if self._since is not None and now > self._since + self.limits.header_seconds:
            self.close(frames.CALM, "a frame or a header did not come in time")
        elif self._calms * CALM_SECONDS > self.limits.header_seconds:
            self.close(frames.CALM, "too much that is no call")
        else:
            super().expire(now)

    def waits_since(self) -> float | None:
        """Since when all has been the client's to do; None where an answer is due."""
        if any(call.is_busy() for call in self.calls.values()):
            return None
        return self.last_active

    def make_way(self) -> None:
        """Closes, for another client has no room; streams in which nothing is due end with it."""
        self.close(frames.NO_ERROR, "another client needs the place")

    def _start_calm(self) -> None:
        """Reads no more for a while, the longer the more others must wait too."""
        if self._calm is None:
            # Counted, not timed: that it takes longer the more others are calmed is not this client's doing.
            self._calms += 1
            self.state.calmed += 1
            self._calm = self.loop.call_later(CALM_SECONDS * self.state.calmed, self._end_calm)
            self._update_reading()

    def _end_calm(self) -> None:
        self._calm = None
        self.state.calmed -= 1
        self.allowance += CALM_GAIN
        self._since = None
        self._read()
        self._update_reading()

    def _wait_a_turn(self) -> None:
        """Lets others be served before the next headers are decoded."""
        if self._soon is None:
            self._soon = self.loop.call_soon(self._read_on)
            self._update_reading()

    def _read_on(self) -> None:
        self._soon = None
        self._since = None
        self._read()
        self._update_reading()

    def _update_reading(self) -> None:
        pause = self._calm is not None or self._soon is not None or self.write_paused
        if pause != self.reading_paused and not self.closed:
            self.reading_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
