"""HTTP/2's frames, RFC 9113: their numbers, and how their bytes are put together."""

from __future__ import annotations

import struct

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
WITH_PRIORITY = 0x20

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Settings.
HEADER_TABLE, ENABLE_PUSH, CONCURRENT, WINDOW, FRAME, HEADER_LIST = range(1, 7)

# Errors.
NO_ERROR, PROTOCOL_ERROR, _, FLOW_CONTROL_ERROR, _, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = range(8)
CANCEL, COMPRESSION_ERROR, _, CALM = range(8, 12)

# What both sides may send before anything else is agreed on.
FIRST_WINDOW = 65535
FIRST_FRAME = 16384

LARGEST = (1 << 31) - 1

HEAD = struct.Struct(">HBBBI")  # length (the first two), type, flags, stream
HEAD_SIZE = 9
WORD = struct.Struct(">I")
SETTING = struct.Struct(">HI")


class ConnectionFailed(Exception):
    """The other side breaks the protocol, or asks too much: the connection must end."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Makes a frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def head(kind: int, flags: int, stream: int, size: int) -> bytes:
    """Makes the beginning of a frame whose payload follows."""
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream)


def settings(values: dict[int, int]) -> bytes:
    """Makes a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*item) for item in values.items()))


def goaway(last: int, code: int, message: str = "") -> bytes:
    """Makes a GOAWAY frame: the last stream that is looked at, and the reason why no other is."""
    return frame(GOAWAY, 0, 0, WORD.pack(last) + WORD.pack(code) + message.encode())


def reset(stream: int, code: int) -> bytes:
    """Makes a RST_STREAM frame: the end of a stream, without an answer or after it."""
    return frame(RST_STREAM, 0, stream, WORD.pack(code))


def window_update(stream: int, size: int) -> bytes:
    """Makes a WINDOW_UPDATE frame, which allows `size` bytes more."""
    return frame(WINDOW_UPDATE, 0, stream, WORD.pack(size))


def without_padding(flags: int, payload: memoryview) -> memoryview:
    """Returns the payload of a DATA or HEADERS frame without its padding. Raises ConnectionFailed."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFailed(PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]
