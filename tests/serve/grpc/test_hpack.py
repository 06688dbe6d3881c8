"""Headers of HTTP/2 are read as RFC 7541 says: its examples, and whatever comes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchpar.serve.grpc import hpack
from torchpar.serve.grpc.hpack import Decoder, HpackError

FIRST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
THIRD = [
    (b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]  # fmt: skip


@pytest.mark.parametrize(
    "blocks",
    [
        (  # appendix C.3
            "828684410f7777772e6578616d706c652e636f6d", "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ),
        (  # appendix C.4, with Huffman codes
            "828684418cf1e3c2e5f23a6ba0ab90f4ff", "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
    ],
)  # fmt: skip
def test_the_examples_of_the_standard(blocks: tuple[str, str, str]) -> None:
    decoder = Decoder(4096)
    read = [decoder.decode(bytes.fromhex(block)) for block in blocks]
    assert read == [FIRST, [*FIRST, (b"cache-control", b"no-cache")], THIRD]


def test_long_huffman_codes() -> None:
    """Of C.6: a cookie and a date, with symbols of many lengths."""
    coded = "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
    assert hpack.decode_text(bytes.fromhex(coded)) == b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"


def codes() -> dict[int, str]:
    """The bits of each symbol: of a length one follows the other, and a longer one follows on what is left."""
    found, code, before = {}, 0, 0
    for length, symbols in hpack._LENGTHS.items():
        for symbol in symbols.split():
            code, before = code << length - before, length
            found[int(symbol, 16)] = f"{code:0{length}b}"
            code += 1
    return found


CODES = codes()


def coded(text: bytes) -> bytes:
    bits = "".join(CODES[byte] for byte in text)
    bits += "1" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8, "big")


@given(st.binary(max_size=300))
def test_every_symbol_is_read_in_a_huffman_code(text: bytes) -> None:
    assert hpack.decode_text(coded(text)) == text


def test_a_huffman_code_that_is_cut_or_padded_too_far_is_refused() -> None:
    """A code of more than a byte has only its first, or a whole byte of ones follows."""
    for symbol, bits in CODES.items():
        whole = coded(bytes((symbol,))) if symbol < 256 else b""
        for wrong in (whole + b"\xff", int(bits[:8], 2).to_bytes(1, "big") if len(bits) > 8 else b"\xff"):
            with pytest.raises(HpackError):
                hpack.decode_text(wrong)


class Counted(list[tuple[int, bytes]]):
    """Steps that are counted."""

    taken = 0

    def __getitem__(self, place: Any) -> Any:
        self.taken += 1
        return super().__getitem__(place)


@pytest.mark.parametrize("symbol", [b"0", b"\n", b"\xff"])
def test_a_huffman_code_costs_two_steps_a_byte_whatever_it_holds(
    symbol: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a block as large as may be holds nobody else up, kept in the table or not."""
    steps = Counted(hpack._STEPS)
    monkeypatch.setattr(hpack, "_STEPS", steps)
    code = coded(symbol * 30_000)
    value = bytearray(hpack._sized(code))
    value[0] |= 0x80
    assert Decoder(50).decode(b"\x40\x01a" + bytes(value)) is None
    assert steps.taken == 2 * len(code)


@pytest.mark.parametrize(
    "block",
    [
        "80",  # no entry has the number 0
        "be",  # the table is empty
        "ffffffffff7f",  # a number of five bytes and more
        "400a6375",  # ends within a name
        "3fe21f",  # a table of 4097 bytes
        "8220",  # a table that changes after a field
        "0082ffff0161",  # the name is padding only
        "0084ffffffff0161",  # and the end itself
        "0081",  # ends before a text
    ],
)
def test_what_is_no_header_is_refused(block: str) -> None:
    with pytest.raises(HpackError):
        Decoder(4096).decode(bytes.fromhex(block))


def test_fields_that_are_too_large_are_not_kept_and_the_table_stays_right() -> None:
    """One byte may stand for a field of four thousand: sixteen thousand of them are 64 MB."""
    decoder = Decoder(10_000)
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000
    assert decoder.decode(entry) == [(b"a", b"v" * 4000)]
    assert decoder.decode(b"\xbe" * 16_000) is None
    assert decoder.decode(b"\xbe") == [(b"a", b"v" * 4000)]
    assert decoder.decode(b"\xbe\x40\x01b\x01c") == [(b"a", b"v" * 4000), (b"b", b"c")]
    assert decoder.decode(b"\x20\x82") == [(b":method", b"GET")]
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe")


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=5))
def test_what_is_written_is_read(fields: list[tuple[bytes, bytes]]) -> None:
    assert Decoder(1 << 20).decode(hpack.encode(tuple(fields))) == fields


@given(st.binary(max_size=100))
def test_any_bytes_are_a_header_or_an_error(block: bytes) -> None:
    try:
        Decoder(4096).decode(block)
    except HpackError:
        pass


def text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


FIELDS = st.tuples(st.sampled_from([b"\0", b"\x10", b"\x40"]), st.binary(max_size=20), st.binary(max_size=100))


@given(st.lists(FIELDS, max_size=60))
def test_a_block_that_is_too_large_leaves_the_table_right(fields: list[tuple[bytes, bytes, bytes]]) -> None:
    """Of fields that are passed over too, by a name of the static table or one of their own."""
    block = b"".join(
        kind + text(name) + text(value) if name else bytes((kind[0] | 4,)) + text(value)
        for kind, name, value in fields
    )
    small, large = Decoder(50), Decoder(1 << 20)
    found = large.decode(block)
    assert found is not None
    assert small.decode(block) in (found, None)
    assert small._entries == large._entries
    with pytest.raises(HpackError):
        Decoder(0).decode(block + b"\0\x01a")
