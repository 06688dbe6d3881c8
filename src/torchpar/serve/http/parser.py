"""HTTP/1.1 as a server reads it: RFC 9112, and nothing that RFC 9112 leaves to a parser's kindness.

Written here, so that it is the same whichever packages an interpreter has. What two servers of one request read in two
ways is how requests are smuggled past a proxy: a space before a colon, a line that ends in LF alone, a field twice. All
of that is refused, as h11 does, which the tests compare it with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from torchpar.serve.limits import FRAMING, FRAMING_SHARE

CRLF = b"\r\n"
BLANK_LINE = b"\r\n\r\n"

# Heads that are remembered, and how long one is worth it: clients send the same ones again and again.
KEPT = 512
KEPT_SIZE = 1024

# Of a chunk: its size's digits, and bytes of the line that they are on.
DIGITS = 16
CHUNK_LINE = 256

# Before a request: some clients end a body with one that does not count (RFC 9112, 2.2).
BLANK_LINES = 2

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)\r\n")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*")
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
# The beginning of a request line.
_BEGUN = re.compile(rb"(?:\r|" + _TOKEN + rb"(?: (?:[\x21-\x7e]+(?: [HTP/0-9.]{0,8}\r?)?)?)?)?")
_BARE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")
_HOST = re.compile(rb"[0-9A-Za-z.:_~%!$&'()*+,;=\[\]-]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,%d})(?:;[\t\x20-\x7e\x80-\xff]*|[\t ]*)" % DIGITS)

# Fields that say one thing: of two, each side of a proxy might take another one.
_ONCE = frozenset(
    (
        b"host", b"content-length", b"transfer-encoding", b"content-encoding", b"inference-header-content-length",
        b"expect", b"content-type",
    )
)  # fmt: skip


class Malformed(Exception):
    """The bytes of a client are not HTTP/1.1; `status` is to be answered."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Head:
    """The request line and the header fields. `fields` have lower-case names, of several with one name the last.

    length is the body's in bytes, None where it comes in chunks.
    """

    method: bytes
    target: bytes
    version: str
    fields: dict[bytes, bytes]
    keep_alive: bool
    length: int | None


class Events(Protocol):
    """The methods that a parser calls, in this order, for each request."""

    def on_message_begin(self) -> None:
        """Takes note of the first byte of a request."""

    def on_head(self, head: Head) -> None:
        """Takes the request line and the header fields."""

    def on_body(self, body: bytes) -> None:
        """Takes a piece of the body, without the framing of chunks."""

    def on_message_complete(self) -> None:
        """Takes note of the end of the request."""


def parse_head(text: bytes) -> Head:
    """Parses what stands before the blank line, each line with its end. Raises Malformed."""
    first = _REQUEST.match(text)
    if first is None:
        raise Malformed("the request line is not METHOD TARGET HTTP/1.1")
    if first[3] != b"1" or first[4] not in (b"0", b"1"):
        raise Malformed("the version of HTTP here is 1.1, or 1.0", 505)
    version = f"1.{first[4].decode()}"
    if not _FIELDS.fullmatch(text, first.end()):
        raise Malformed("a line of the header is not NAME: VALUE")
    fields: dict[bytes, bytes] = {}
    options: list[bytes] = []
    for name, value in _FIELD.findall(text, first.end()):
        name, value = name.lower(), value.strip(b" \t")
        if name in _ONCE and name in fields:
            raise Malformed(f"the request has two {name.decode()} fields")
        if name == b"connection":
            options += (option.strip(b" \t") for option in value.lower().split(b","))
        fields[name] = value
    if not _HOST.fullmatch(fields.get(b"host", b"")):
        raise Malformed("the Host field is not a host")
    if b"host" not in fields and version == "1.1":
        raise Malformed("the request has no Host field")
    return Head(
        first[1],
        first[2],
        version,
        fields,
        # After CONNECT comes what is not HTTP, whatever the answer.
        b"close" not in options and (version == "1.1" or b"keep-alive" in options) and first[1] != b"CONNECT",
        _body_length(fields, version),
    )


def _body_length(fields: dict[bytes, bytes], version: str) -> int | None:
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            # Two lengths are how requests are smuggled past a proxy: RFC 9112, 6.3.
            raise Malformed("the request has both Content-Length and Transfer-Encoding")
        if version == "1.0":
            raise Malformed("HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise Malformed("the only Transfer-Encoding here is chunked", 501)
        return None
    if length is None:
        return 0
    if not length.isdigit():
        raise Malformed("Content-Length is not a number")
    if len(length) > 18:
        raise Malformed(f"the body has {length[:24].decode()} bytes", 413)
    return int(length)


class Parser:
    """Parses one connection; keeps only a header or a line that is not whole yet."""

    def __init__(self, events: Events, header_limit: int, heads: dict[bytes, Head]) -> None:
        """heads are remembered there, for all connections."""
        self._events = events
        self._limit = header_limit
        self._heads = heads
        self._rest = b""
        self._seen = 0  # bytes of what is fed that were looked at before
        self._begun = False  # a header
        self._blank = 0  # lines before it
        self._left: int | None = None  # bytes of the body, or of a chunk, that are to come; None outside of one
        self._chunked = False
        self._after_chunk = False  # its line end is to come
        self._trailers = False
        self._framing = self._size = 0

    def feed_data(self, data: bytes) -> None:
        """Parses what came; raises Malformed. Nothing may be fed after that."""
        self._seen = len(self._rest)
        if self._rest:
            data, self._rest = self._rest + data, b""
        place: int | None = 0
        at, size = 0, len(data)
        while at < size:
            if self._left:
                place = self._take_body(data, at)
            elif self._trailers:
                place = self._take_trailers(data, at)
            elif self._chunked:
                place = self._take_chunk_line(data, at)
            else:
                place = self._take_head(data, at)
            if place is None:
                self._rest = data[at:]
                return
            at = place

    def _take_head(self, data: bytes, at: int) -> int | None:
        if not self._begun:
            if data.startswith(CRLF, at):
                self._blank += 1
                if self._blank > BLANK_LINES:
                    raise Malformed("there are blank lines before the request")
                return at + 2
            if data[at:] == b"\r":
                return None
            self._begun, self._blank = True, 0
            self._events.on_message_begin()
        end = data.find(BLANK_LINE, max(at, self._seen - 3))
        if end < 0:
            self._check_begun(data, at)
            return None
        if end + 4 - at > self._limit:
            raise self._too_large(data, at)
        text = data[at : end + 2]
        head = self._heads.get(text)
        if head is None:
            head = parse_head(text)
            if len(text) <= KEPT_SIZE:
                if len(self._heads) >= KEPT:
                    self._heads.clear()
                self._heads[text] = head
        self._begun = False
        self._left, self._chunked = head.length, head.length is None
        self._framing = self._size = 0
        self._events.on_head(head)
        if self._left == 0:
            self._end()
        return end + 4

    def _check_begun(self, data: bytes, at: int) -> None:
        """Says at once what will not become a header."""
        if len(data) - at > self._limit:
            raise self._too_large(data, at)
        start = max(at, self._seen - 1)
        if start == at and data.find(CRLF, at) < 0 and not _BEGUN.fullmatch(data, at):
            raise Malformed("the request line is not METHOD TARGET HTTP/1.1")
        if _BARE.search(data, start):
            raise Malformed("a line of the header does not end in CR and LF")

    def _too_large(self, data: bytes, at: int) -> Malformed:
        if data.find(CRLF, at, at + self._limit) < 0:
            return Malformed(f"the request's target is longer than {self._limit} bytes", 414)
        return Malformed(f"the request's header is larger than {self._limit} bytes", 431)

    def _take_body(self, data: bytes, at: int) -> int:
        assert self._left is not None
        piece = data[at : at + self._left]
        self._left -= len(piece)
        self._size += len(piece)
        self._after_chunk = self._chunked and not self._left
        self._events.on_body(piece)
        if not self._left and not self._chunked:
            self._end()
        return at + len(piece)

    def _take_chunk_line(self, data: bytes, at: int) -> int | None:
        if self._after_chunk:
            if not CRLF.startswith(data[at : at + 2]):
                raise Malformed("a chunk does not end where it says")
            if len(data) - at < 2:
                return None
            self._after_chunk = False
            return at + 2
        end = data.find(CRLF, at, at + CHUNK_LINE)
        line = data[at : end if end >= 0 else at + CHUNK_LINE]
        found = _CHUNK.fullmatch(line if end >= 0 else line.removesuffix(b"\r"))
        if found is None and (end >= 0 or line not in (b"", b"\r")):
            raise Malformed("a chunk does not begin with its size")
        if end < 0:
            if len(line) >= CHUNK_LINE:
                raise Malformed(f"the line of a chunk's size is longer than {CHUNK_LINE} bytes")
            return None
        assert found is not None
        self._left = int(found[1], 16)
        self._trailers = not self._left
        self._framing += end + 2 - at
        if self._framing > FRAMING + self._size // FRAMING_SHARE:
            raise Malformed("the chunks of the body are very small, and very many", 413)
        return end + 2

    def _take_trailers(self, data: bytes, at: int) -> int | None:
        """Passes over the fields after a chunked body."""
        if data.startswith(CRLF, at):
            self._trailers = False
            self._end()
            return at + 2
        end = data.find(BLANK_LINE, max(at, self._seen - 3))
        if (end if end >= 0 else len(data)) - at > self._limit:
            raise Malformed(f"the request's trailer is larger than {self._limit} bytes", 431)
        if end < 0:
            if _BARE.search(data, max(at, self._seen - 1)):
                raise Malformed("a line of the trailer does not end in CR and LF")
            return None
        if not _FIELDS.fullmatch(data, at, end + 2):
            raise Malformed("a line of the trailer is not NAME: VALUE")
        return end + 2

    def _end(self) -> None:
        self._left, self._chunked = None, False
        self._events.on_message_complete()
