"""The fields of a request over HTTP/2, RFC 9113, 8.2 and 8.3."""

from __future__ import annotations

import re

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_NEEDED = frozenset((b":method", b":scheme", b":path"))
# Of HTTP/1.1's connections, which there are none of.
_CONNECTION = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


def request_fields(found: list[tuple[bytes, bytes]]) -> dict[bytes, bytes] | None:
    """Returns the fields by name, the last of several with one name; None where they are no request's."""
    fields: dict[bytes, bytes] = {}
    ordinary = False
    for name, value in found:
        if name[:1] == b":":
            if ordinary or name not in _PSEUDO or name in fields:
                return None
        else:
            ordinary = True
            if not _NAME.fullmatch(name) or name in _CONNECTION or (name == b"te" and value != b"trailers"):
                return None
        if not _VALUE.fullmatch(value):
            return None
        fields[name] = value
    return fields if fields.keys() >= _NEEDED else None


def refusal(fields: dict[bytes, bytes]) -> int:
    """Returns the HTTP status for a request that is no call of gRPC; 0 for one that is."""
    if fields[b":method"] != b"POST":
        return 405
    return 0 if fields.get(b"content-type", b"")[:16] == b"application/grpc" else 415
