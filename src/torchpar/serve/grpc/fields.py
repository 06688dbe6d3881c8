"""The header of a request over HTTP/2, RFC 9113, 8.2 and 8.3: its fields, and what a call needs of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torchpar.serve.grpc.hpack import Decoder
from torchpar.serve.http.local import is_local

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


# Why a header begins no call, in HTTP's words. Of these two the client is told in gRPC's and HTTP/2's.
MALFORMED = 400
TOO_LARGE = 431

_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# Headers that are kept of one connection, and how long one is at the most: a client's calls differ in their paths, and
# after its first ones each has some bytes.
KEPT = 8
KEPT_SIZE = 256


class Asked(NamedTuple):
    """A header, as far as a call needs it.

    refusal: why it begins none, an HTTP status; 0 where it does. timeout: seconds that the client waits, None for ever.
    local: whether the client is on this host.
    """

    refusal: int
    path: bytes = b""
    encoding: str = "identity"
    timeout: float | None = None
    local: bool = False


class Headers:
    """Reads the headers of one connection, which must all be given to it; one that was there before costs a look-up."""

    def __init__(self, most: int, peer: Any) -> None:
        """most: bytes of a header, see hpack.Decoder; peer: the other end's address as accept(2) gave it."""
        self._decoder = Decoder(most)
        self._peer = peer
        self._kept: dict[bytes, Asked] = {}
        self._changes = 0  # of the table, since which they are kept

    def read(self, block: bytes) -> Asked:
        """Reads a header. Raises HpackError."""
        kept = self._kept.get(block)
        if kept is not None:
            return kept
        asked = self._understand(self._decoder.decode(block))
        if self._changes != self._decoder.changes:
            # The others may mean something else now; and this one changes the table again whenever it comes.
            self._kept.clear()
            self._changes = self._decoder.changes
        elif len(self._kept) >= KEPT:
            self._kept.clear()
        elif len(block) <= KEPT_SIZE and asked.refusal != TOO_LARGE:
            self._kept[block] = asked
        return asked

    def _understand(self, found: list[tuple[bytes, bytes]] | None) -> Asked:
        if found is None:
            return Asked(TOO_LARGE)
        fields = request_fields(found)
        if fields is None:
            return Asked(MALFORMED)
        return Asked(
            _refusal(fields),
            fields[b":path"],
            fields.get(b"grpc-encoding", b"identity")[:40].decode("ascii", "replace"),
            _timeout(fields.get(b"grpc-timeout", b"")[:12]),
            is_local(self._peer, fields),
        )


def _refusal(fields: Mapping[bytes, bytes]) -> int:
    """Returns the HTTP status for a request that is no call of gRPC; 0 for one that is."""
    if fields[b":method"] != b"POST":
        return 405
    return 0 if fields.get(b"content-type", b"")[:16] == b"application/grpc" else 415


def _timeout(text: bytes) -> float | None:
    unit = _UNITS.get(text[-1:])
    return int(text[:-1]) * unit if unit and text[:-1].isdigit() else None
