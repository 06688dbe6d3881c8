"""Takes the frames of a client: each has a meaning, and a cost."""

from __future__ import annotations

from typing import Any, Callable

from torchpar.serve.grpc import frames, hpack
from torchpar.serve.grpc.arriving import RESOURCE_EXHAUSTED
from torchpar.serve.grpc.call import Call
from torchpar.serve.grpc.fields import MALFORMED, TOO_LARGE, Headers
from torchpar.serve.grpc.frames import ConnectionFailed
from torchpar.serve.grpc.outgoing import FRAME, Outgoing
from torchpar.serve.http.state import ServerState

# What of a connection's allowance such frames take.
COST = {frames.SETTINGS: 10, frames.PING: 1, frames.PRIORITY: 1, frames.WINDOW_UPDATE: 1}
REFUSED = 4  # a call more than may be
RESET = 10  # a stream that was begun for nothing
SOON_SECONDS = 0.1  # which one is that a client resets within this time; later, its number of calls bounds how often
SMALL_DATA = 256  # bytes; a frame of less that ends no call costs 1
HEADER_BYTES = 64  # so many bytes of a header that begins no call cost 1

# Bytes of headers that are decoded in one turn of the loop; others are served before there are more.
TURN = 16 * 1024

# A header of so many times its limit is still read, to say so in an answer: without its end no further one can be read.
READABLE = 4

# More settings than this in one frame, of six bytes each, say nothing.
SETTINGS_SIZE = 600


class Taking(Outgoing):
    """The half of a connection that reads frames; what it raises ends the connection."""

    def __init__(self, state: ServerState, peer: Any, application: Callable[[Call], None]) -> None:
        super().__init__(state, peer)
        self._application = application
        self._headers = Headers(self.limits.header, peer)
        self._block: bytearray | None = None  # a header that goes on
        self._block_of = (0, 0)
        self._receive_window = self.limits.connection_window
        self.turn = TURN  # what is left of it

    def has_open_header(self) -> bool:
        """Says whether the next frame is the rest of a header."""
        return self._block is not None

    def take(self, kind: int, flags: int, stream: int, payload: memoryview) -> None:  # noqa: C901 - a branch for each type of frame
        """Takes a frame. Raises ConnectionFailed, and HpackError."""
        if self._block is not None and (kind != frames.CONTINUATION or stream != self._block_of[0]):
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "a header is not ended")
        if kind == frames.DATA:
            self._take_data(flags, stream, payload)
            return
        if kind == frames.HEADERS:
            self._take_headers(flags, stream, payload)
            return
        if kind == frames.RST_STREAM:
            self._take_reset(stream, payload)
            return
        self.allowance -= COST.get(kind, 1)
        if kind == frames.CONTINUATION:
            self._take_continuation(flags, payload)
        elif kind == frames.SETTINGS:
            self._take_settings(flags, stream, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._take_window(stream, payload)
        elif kind == frames.PING:
            if stream or len(payload) != 8:
                raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "a PING of another size, or of a stream")
            if not flags & frames.ACK:
                self.write(frames.frame(frames.PING, frames.ACK, 0, bytes(payload)))
        elif kind == frames.GOAWAY and stream or kind == frames.PUSH_PROMISE:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "a frame that a client does not send")
        elif kind == frames.PRIORITY and (not stream or len(payload) != 5):
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "a PRIORITY of another size, or of no stream")

    def _take_data(self, flags: int, stream: int, payload: memoryview) -> None:
        size = len(payload)
        if not stream or stream > self.newest:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "DATA for a stream that is not there")
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, "more than the connection's window")
        if self._receive_window * 2 < self.limits.connection_window:
            self.write(frames.window_update(0, self.limits.connection_window - self._receive_window))
            self._receive_window = self.limits.connection_window
        call = self.calls.get(stream)
        piece = frames.without_padding(flags, payload)
        if len(piece) < SMALL_DATA and (call is None or not flags & frames.END_STREAM):
            self.allowance -= 1
        if call is None:
            return  # it was answered or reset, and the client did not know yet
        if call.has_ended():
            raise ConnectionFailed(frames.STREAM_CLOSED, "DATA after the end of its stream")
        call.receive_window -= size
        if call.receive_window < 0:
            raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, "more than the stream's window")
        call.uncredited += size - len(piece)
        if piece:
            if not flags & frames.END_STREAM and len(piece) >= SMALL_DATA:
                self.last_active = self.loop.time()
            call.receive(piece)
        if flags & frames.END_STREAM:
            call.end()

    def _take_headers(self, flags: int, stream: int, payload: memoryview) -> None:
        payload = frames.without_padding(flags, payload)
        if flags & frames.WITH_PRIORITY:
            payload = payload[5:]
        if not stream & 1:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "a stream with an even number")
        if flags & frames.END_HEADERS:
            self._open(stream, flags, bytes(payload))
            return
        self._block_of = stream, flags
        self._block = bytearray()
        self._take_continuation(flags, payload)

    def _take_continuation(self, flags: int, payload: memoryview) -> None:
        block = self._block
        if block is None:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "a CONTINUATION of nothing")
        block += payload
        most = self.limits.header * READABLE
        if len(block) > most:
            raise ConnectionFailed(frames.CALM, f"a header of more than {most} bytes")
        if flags & frames.END_HEADERS:
            self._block = None
            self._open(*self._block_of, bytes(block))

    def _open(self, stream: int, flags: int, block: bytes) -> None:
        """Begins a call, or ends one by its trailers: a header is whole."""
        asked = self._headers.read(block)
        self.turn -= len(block)
        cost = len(block) // HEADER_BYTES
        call = self.calls.get(stream)
        if stream <= self.newest:
            self.allowance -= 1 + cost
            if call is not None and (call.has_ended() or not flags & frames.END_STREAM):
                raise ConnectionFailed(frames.PROTOCOL_ERROR, "a second header of a stream")
            if call is not None:
                call.end()
            return
        self.newest = stream
        if len(self.calls) >= self.limits.calls or self.closed:
            self.allowance -= REFUSED + cost
            self.write(frames.reset(stream, frames.REFUSED_STREAM))
            return
        if asked.refusal == MALFORMED:
            self.allowance -= RESET + cost
            self.write(frames.reset(stream, frames.PROTOCOL_ERROR))
            return
        self.calls[stream] = call = Call(self, stream, asked)
        call.cost = cost
        if asked.refusal == TOO_LARGE:
            self.allowance -= cost
            call.fail(RESOURCE_EXHAUSTED, f"the metadata are larger than {self.limits.header} bytes")
        elif asked.refusal:
            call.decline(asked.refusal)
        else:
            self._application(call)
        if flags & frames.END_STREAM:
            call.end()

    def _take_settings(self, flags: int, stream: int, payload: memoryview) -> None:
        if stream or len(payload) % frames.SETTING.size or flags & frames.ACK and payload:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "SETTINGS of another size, or of a stream")
        if flags & frames.ACK:
            return
        if len(payload) > SETTINGS_SIZE:
            raise ConnectionFailed(frames.CALM, "very many settings")
        values: dict[int, int] = dict(frames.SETTING.iter_unpack(payload))
        if values.get(frames.ENABLE_PUSH, 0) > 1:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        size = values.get(frames.FRAME, self.frame_size)
        if not frames.FIRST_FRAME <= size < 1 << 24:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, f"a frame size of {size}")
        self.frame_size = min(size, FRAME)
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if any(key == frames.HEADER_TABLE and size < hpack.TABLE for key, size in frames.SETTING.iter_unpack(payload)):
            self.give_up_table()
        first = values.get(frames.WINDOW, self.first_window)
        if first > frames.LARGEST:
            raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, f"a window of {first}")
        more, self.first_window = first - self.first_window, first
        if more:
            for call in tuple(self.calls.values()):
                self._widen(call, more)
            self.pump()

    def _take_window(self, stream: int, payload: memoryview) -> None:
        if len(payload) != 4:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "a WINDOW_UPDATE of another size")
        if stream > self.newest:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "a WINDOW_UPDATE for a stream that is not there")
        more = frames.WORD.unpack(payload)[0] & frames.LARGEST
        call = self.calls.get(stream)
        if not more:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "a WINDOW_UPDATE by nothing")
        if not stream:
            self.window += more
            if self.window > frames.LARGEST:
                raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, "a window of more than 31 bits")
        elif call is not None:
            self._widen(call, more)
        self.pump()

    def _widen(self, call: Call, more: int) -> None:
        call.window += more
        if call.window > frames.LARGEST:
            raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, "a window of more than 31 bits")
        if call.window > 0 and call.blocked is not None:
            call.blocked = None
            self.queue(call)

    def _take_reset(self, stream: int, payload: memoryview) -> None:
        if len(payload) != 4:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "a RST_STREAM of another size")
        if not stream or stream > self.newest:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "a RST_STREAM for a stream that is not there")
        call = self.calls.pop(stream, None)
        if call is None:
            self.allowance -= 1
        else:
            if self.loop.time() < call.begun + SOON_SECONDS:
                self.allowance -= RESET + call.cost
            call.drop()
