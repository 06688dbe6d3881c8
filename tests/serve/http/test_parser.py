"""Requests are read as RFC 9112 says and in one way only: what this parser takes, h11 takes with the same meaning."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchpar.serve.http import parser
from torchpar.serve.http.parser import Head, Malformed, Parser

LIMIT = 2048


@dataclass
class Heard:
    """What a parser says."""

    requests: list[tuple[Head, bytes]] = field(default_factory=list)
    head: Head | None = None
    body: bytes = b""
    begun: int = 0

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_head(self, head: Head) -> None:
        self.head, self.body = head, b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        assert self.head
        self.requests.append((self.head, self.body))


def read(data: bytes, cuts: tuple[int, ...] = ()) -> tuple[Heard, Malformed | None]:
    """Everything that is taken, and why the rest is not."""
    heard = Heard()
    reader = Parser(heard, LIMIT, {})
    start = 0
    try:
        for end in (*sorted(cuts), len(data)):
            reader.feed_data(data[start:end])
            start = max(start, end)
    except Malformed as error:
        return heard, error
    return heard, None


def status(data: bytes) -> int:
    """What the answer would be; 0 where the request is taken or not whole."""
    _, error = read(data)
    return error.status if error else 0


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"

# How requests are smuggled past a proxy, and headers past whoever looks for them.
REFUSED = {
    "a space before a colon": GET + b"X-Forwarded-For : 10.0.0.1\r\n\r\n",
    "a tab before a colon": GET + b"Content-Length\t: 5\r\n\r\nabcde",
    "no name": GET + b": a\r\n\r\n",
    "no colon": GET + b"Content-Length\r\n\r\n",
    "a folded line": GET + b"A: b\r\n c\r\n\r\n",
    "a folded first line": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "LF alone": b"GET / HTTP/1.1\nHost: x\n\n",
    "LF alone in one line": GET + b"A: b\nX-Forwarded-For: c\r\n\r\n",
    "LF alone at the end": GET + b"\n",
    "CR alone": GET + b"A: b\rContent-Length: 5\r\n\r\nabcde",
    "NUL in a value": GET + b"A: b\0c\r\n\r\n",
    "NUL in a name": GET + b"A\0: b\r\n\r\n",
    "NUL in a target": b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a control character": GET + b"A: \x0b\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "the same host twice": GET + b"host: x\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a host with a space": b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "the same length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a length with a sign": POST + b"Content-Length: +3\r\n\r\nabc",
    "a length in hexadecimal": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\nabc",
    "no length": POST + b"Content-Length:\r\n\r\n",
    "length and coding": CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two codings": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "spaces around a method": b" GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space at the end of the line": b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "three blank lines": b"\r\n" * 3 + GET + b"\r\n",
    "blank lines without end": b"\r\n" * 1000,
    "three blank lines after a request": GET + b"\r\n" + b"\r\n" * 3 + GET + b"\r\n",
    "no version": b"GET /\r\nHost: x\r\n\r\n",
    "a method that is none": b"G(T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a chunk's size with a sign": CHUNKED + b"\r\n+3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size in 0x": CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "no chunk's size": CHUNKED + b"\r\n;a\r\nabc\r\n0\r\n\r\n",
    "a chunk's size of 17 digits": CHUNKED + b"\r\n00000000000000003\r\nabc\r\n0\r\n\r\n",
    "LF alone after a chunk's size": CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n",
    "LF alone after a chunk": CHUNKED + b"\r\n3\r\nabc\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n",
    "LF in what follows a chunk's size": CHUNKED + b"\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
    "much that follows a chunk's size": CHUNKED + b"\r\n3;" + b"a" * 300 + b"\r\nabc\r\n0\r\n\r\n",
    "a folded trailer": CHUNKED + b"\r\n0\r\nA: b\r\n c\r\n\r\n",
    "a space before a trailer's colon": CHUNKED + b"\r\n0\r\nA : b\r\n\r\n",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes) -> None:
    """Whole, and byte by byte."""
    assert status(data) == 400
    _, error = read(data, tuple(range(len(data))))
    assert error is not None and error.status == 400


@pytest.mark.parametrize("version", [b"HTTP/9.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/0.9"])
def test_other_versions_are_505(version: bytes) -> None:
    assert status(b"GET / " + version + b"\r\nHost: x\r\n\r\n") == 505


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (GET + b"A: " + b"a" * LIMIT + b"\r\n\r\n", 431),
        (GET + b"A: " + b"a" * LIMIT, 431),
        (b"GET /" + b"a" * LIMIT, 414),
        (CHUNKED + b"\r\n0\r\nA: " + b"a" * LIMIT, 431),
        (POST + b"Content-Length: 9999999999999999999\r\n\r\n", 413),
        (CHUNKED + b"\r\n" + b"1\r\na\r\n" * 30_000, 413),
        (CHUNKED + b"\r\n" + b"3\r\nabc\r\n" * 100_000, 413),
        (CHUNKED + b"\r\n" + b"1\r\na\r\n" * 20_000, 0),
        (CHUNKED + b"\r\n" + b"10\r\n0123456789abcdef\r\n" * 100_000, 0),
        ((b"\r\n" * 2 + GET + b"\r\n") * 3, 0),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ],
)
def test_headers_and_the_framing_of_chunks_are_bounded(data: bytes, wanted: int) -> None:
    assert status(data) == wanted


@pytest.mark.parametrize("begun", [GET, CHUNKED + b"\r\n0\r\n"], ids=["a header", "a trailer"])
def test_what_comes_byte_by_byte_is_looked_at_once(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    class Spy:
        def search(self, data: bytes, start: int) -> None:
            looked.append(len(data) - start)

    monkeypatch.setattr(parser, "_BARE", Spy())
    data = begun + b"A: " + b"a" * 1500
    assert read(data, tuple(range(len(data))))[1] is None
    assert len(looked) > 1500 and sum(looked) < 3 * len(data)


def test_what_a_client_may_write_in_several_ways_means_the_same() -> None:
    data = (
        b"\r\nPOST /a?b=%00 HTTP/1.1\r\nhOST:x:80\r\nA:  b\tc \t\r\nA: \xff\r\nEmpty:\r\nTransfer-Encoding: Chunked\r\n"
        b'Connection: a, CLOSE\r\n\r\n03;x="y"\r\nabc\r\nA \r\n0123456789\r\n00\r\nTrailer: x\r\n\r\n'
    )
    for cuts in ((), tuple(range(len(data)))):
        heard, error = read(data, cuts)
        assert error is None and heard.begun == 1
        [(head, body)] = heard.requests
        assert (head.method, head.target, head.version, head.keep_alive) == (b"POST", b"/a?b=%00", "1.1", False)
        fields = {b"host": b"x:80", b"a": b"\xff", b"empty": b""}
        assert head.fields == {**fields, b"transfer-encoding": b"Chunked", b"connection": b"a, CLOSE"}
        assert body == b"abc0123456789"


def by_h11(data: bytes) -> list[tuple[Any, bytes]]:
    """What h11 takes."""
    found: list[tuple[Any, bytes]] = []
    while data:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMIT)
        request, body = None, b""
        connection.receive_data(data)
        with contextlib.suppress(h11.RemoteProtocolError):
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    found.append((request, body))
                    break
            else:
                return found
            data = connection.trailing_data[0].lstrip(b"\r\n")
            continue
        return found
    return found


FRAGMENTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /a HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"Host: x\r\n", b"Host: \r\n", b"\r\n",
        b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\xff", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
        b"Content-Length : 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n",
        b"5\r\nabcde\r\n", b"0\r\n\r\n", b"0\r\n", b"5;a=b\r\n", b"abcde", b"A: b\r\n", b"A:b \t\r\n", b" c\r\n",
        b"Connection: close\r\n", b"Connection: keep-alive, x\r\n", b"HTTP/9.9", b"CONNECT",
        b"Expect: 100-continue\r\n",
    ]
)  # fmt: skip
WHOLE = st.sampled_from(
    [GET + b"\r\n", POST + b"Content-Length: 5\r\n\r\nabcde", CHUNKED + b"\r\n5\r\nabcde\r\n0\r\n\r\n", CHUNKED, GET]
)
# As often a request with a piece too many or with a byte changed as anything at all.
BYTES = st.one_of(
    st.lists(FRAGMENTS | WHOLE, max_size=8).map(b"".join),
    st.tuples(WHOLE, st.integers(0, 80), FRAGMENTS | st.binary(max_size=1), st.integers(0, 2), WHOLE).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + parts[3] :] + parts[4]
    ),
)


@settings(max_examples=600, deadline=None)
@given(BYTES, st.lists(st.integers(0, 200), max_size=4))
@example(b"\r\n" + GET + b"\r\n", [])
def test_what_is_taken_is_taken_by_h11_too(data: bytes, cuts: list[int]) -> None:
    heard, _ = read(data)
    assert read(data, tuple(cuts))[0].requests == heard.requests
    theirs = by_h11(data.lstrip(b"\r\n"))
    assert len(theirs) >= len(heard.requests)
    for (head, body), (request, their_body) in zip(heard.requests, theirs):  # noqa: B905 - 3.9 has no strict
        assert (head.method, head.target, body) == (request.method, request.target, their_body)
        assert head.version.encode() == request.http_version
        assert head.fields == {bytes(name): bytes(value) for name, value in request.headers}
