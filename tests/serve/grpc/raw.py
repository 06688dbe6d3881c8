"""A client of HTTP/2 that is as bad as a test wants it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from torchpar.serve.grpc import frames, hpack
from torchpar.serve.grpc.frames import frame

SERVICE = b"/inference.GRPCInferenceService/"
INFER, STREAM, LIVE = SERVICE + b"ModelInfer", SERVICE + b"ModelStreamInfer", SERVICE + b"ServerLive"


def block(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The header of a call."""
    return b"\x83\x86" + hpack.encode(
        ((b":path", path), (b":authority", b"localhost"), (b"te", b"trailers"), (b"content-type", b"application/grpc"))
        + more
    )


def message(size: int, begun: bytes = b"") -> bytes:
    """The beginning of a message that says to be so long."""
    return b"\0" + struct.pack(">I", size) + begun


def call(stream: int, path: bytes = LIVE, data: bytes = message(0), *more: tuple[bytes, bytes]) -> bytes:
    """A whole call."""
    header = frame(frames.HEADERS, frames.END_HEADERS, stream, block(path, *more))
    return header + frame(frames.DATA, frames.END_STREAM, stream, data)


class Raw:
    """One connection. It grants the server nothing more than it has from the beginning."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=300)
        self.send(frames.PREFACE + frames.settings({}))
        self._stream = self.socket.makefile("rb")

    def send(self, *data: bytes) -> None:
        self.socket.sendall(b"".join(data))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of what comes, until the server closes."""
        while len(head := self._stream.read(9)) == 9:
            high, low, kind, flags, stream = frames.HEAD.unpack(head)
            yield kind, flags, stream, self._stream.read(high << 8 | low)

    def until(self, wanted: int, of: int | None = None) -> bytes:
        """The payload of the next frame of a kind, and of a stream."""
        for kind, _, stream, payload in self.frames():
            if kind == wanted and of in (None, stream):
                return payload
            assert kind != frames.GOAWAY or wanted == frames.GOAWAY, payload
        raise AssertionError(f"the connection ended before a frame {wanted}")

    def status(self, stream: int) -> tuple[int, str]:
        """What a call ends with."""
        decoder = hpack.Decoder(1 << 16)
        for kind, flags, of, payload in self.frames():
            assert kind != frames.GOAWAY and (kind, of) != (frames.RST_STREAM, stream), payload
            if kind == frames.HEADERS:
                fields = dict(decoder.decode(payload) or ())
                if of == stream and flags & frames.END_STREAM:
                    return int(fields.get(b"grpc-status", b"-1")), fields.get(b"grpc-message", b"").decode()
        raise AssertionError("the connection ended")

    def answered(self, count: int) -> set[int]:
        """The streams of the next calls that end without an error."""
        decoder, found = hpack.Decoder(1 << 16), set()
        for kind, flags, stream, payload in self.frames():
            assert kind not in (frames.GOAWAY, frames.RST_STREAM), payload
            if kind == frames.HEADERS and flags & frames.END_STREAM:
                assert dict(decoder.decode(payload) or ())[b"grpc-status"] == b"0"
                found.add(stream)
                if len(found) == count:
                    break
        return found

    def end(self) -> tuple[int, str]:
        """Why the server ends the connection."""
        payload = self.until(frames.GOAWAY)
        assert self._stream.read() == b""
        return frames.WORD.unpack_from(payload, 4)[0], payload[8:].decode()

    def close(self) -> None:
        self._stream.close()
        self.socket.close()
