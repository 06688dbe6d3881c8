"""A header that came before, byte by byte, is not read again; what it says is what a reader says that keeps nothing."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchpar.serve.grpc import fields, hpack
from torchpar.serve.grpc.fields import MALFORMED, TOO_LARGE, Asked, Headers

PEER = ("127.0.0.1", 5)
POST = b"\x83\x86"
NEWEST = b"\xbe"  # the last entry that was put into the table


def kept(name: bytes, value: bytes) -> bytes:
    """A field that the table has from now on."""
    return b"\x40" + bytes((len(name),)) + name + bytes((len(value),)) + value


GRPC = kept(b"content-type", b"application/grpc")
BLOCKS = [
    POST + GRPC + hpack.encode(((b"grpc-timeout", b"1S"),)),
    POST + hpack.encode(((b":path", b"/a"), (b"content-type", b"application/grpc"))),
    POST + hpack.encode(((b":path", b"/a"), (b"content-type", b"application/grpc"), (b"grpc-timeout", b"2m"))),
    POST + kept(b":path", b"/b"),
    POST + kept(b":path", b"/c"),
    POST + NEWEST,
    POST + NEWEST + b"\xbf",
    POST + b"\xbf" + NEWEST,
    POST + b"\xbf" + hpack.encode(((b"x-forwarded-for", b"10.0.0.1"),)),
    POST + b"\x04\x02/d" + hpack.encode(((b"Upper", b"a"),)),
    b"\x20" + POST,
    b"\x3f\xe1\x1f" + POST,
    hpack.encode(((b"grpc-status", b"0"),)),
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(BLOCKS), max_size=40))
def test_what_is_kept_is_what_would_be_read(blocks: list[bytes]) -> None:
    headers, forgetful = Headers(4096, PEER), Headers(4096, PEER)
    with mock.patch.object(fields, "KEPT", 3):
        for block in blocks:
            found: list[Asked | None] = []
            for each in (headers, forgetful):
                forgetful._kept.clear()
                try:
                    found.append(each.read(block))
                except hpack.HpackError:
                    found.append(None)
            assert found[0] == found[1]
            if found == [None, None]:
                break  # the connection ends


def test_an_entry_that_has_moved_is_another_path() -> None:
    headers = Headers(4096, PEER)
    headers.read(POST + GRPC)
    headers.read(POST + kept(b":path", b"/a"))
    short = POST + NEWEST + b"\xbf"
    assert [headers.read(short).path for _ in range(3)] == [b"/a"] * 3
    headers.read(POST + kept(b":path", b"/b"))
    assert headers.read(POST + NEWEST + b"\xc0").path == b"/b"
    assert headers.read(short).refusal == MALFORMED  # two paths
    assert headers.read(b"\x20" + POST).refusal == MALFORMED
    with pytest.raises(hpack.HpackError):  # the table is empty now
        headers.read(short)


def test_a_header_is_decoded_once() -> None:
    headers = Headers(4096, PEER)
    headers.read(POST + GRPC)
    blocks = [POST + hpack.encode(((b":path", b"/%d" % number),)) for number in range(fields.KEPT)]
    for block in blocks:
        headers.read(block)
    with mock.patch.object(hpack.Decoder, "decode", side_effect=AssertionError):
        assert [headers.read(block).path for block in blocks] == [b"/%d" % number for number in range(fields.KEPT)]


@pytest.mark.parametrize(("size", "refusal"), [(300, 415), (4096, TOO_LARGE)])
def test_large_headers_are_not_kept(size: int, refusal: int) -> None:
    headers = Headers(4096, PEER)
    assert headers.read(POST + hpack.encode(((b":path", b"/"), (b"a", b"b" * size)))).refusal == refusal
    assert not headers._kept


def test_no_more_headers_are_kept_than_may_be() -> None:
    headers = Headers(4096, PEER)
    for number in range(100):
        headers.read(POST + hpack.encode(((b":path", b"/%d" % number),)))
        assert len(headers._kept) <= fields.KEPT
