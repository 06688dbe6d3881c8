"""HPACK, RFC 7541: the header blocks of HTTP/2, as a server reads them and writes its few own."""

from __future__ import annotations

from collections import deque

# Appendix A. The first entry has the number 1.
STATIC: tuple[tuple[bytes, bytes], ...] = tuple(
    (name.encode(), value.encode())
    for name, _, value in (
        line.partition("=")
        for line in (
            ":authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200"
            " :status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset"
            " accept-encoding=gzip,|deflate accept-language accept-ranges accept access-control-allow-origin age allow"
            " authorization cache-control content-disposition content-encoding content-language content-length"
            " content-location content-range content-type cookie date etag expect expires from host if-match"
            " if-modified-since if-none-match if-range if-unmodified-since last-modified link location max-forwards"
            " proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie"
            " strict-transport-security transfer-encoding user-agent vary via www-authenticate"
        ).split()
    )
    for value in (value.replace("|", " "),)
)

# Appendix B: the codes are canonical, so their lengths say all. The symbols of each length, the end (256) being the
# last of 30 bits, as hexadecimal numbers.
_LENGTHS = {
    5: "30 31 32 61 63 65 69 6f 73 74",
    6: "20 25 2d 2e 2f 33 34 35 36 37 38 39 3d 41 5f 62 64 66 67 68 6c 6d 6e 70 72 75",
    7: "3a 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f 50 51 52 53 54 55 56 57 59 6a 6b 71 76 77 78 79 7a",
    8: "26 2a 2c 3b 58 5a",
    10: "21 22 28 29 3f",
    11: "27 2b 7c",
    12: "23 3e",
    13: "0 24 40 5b 5d 7e",
    14: "5e 7d",
    15: "3c 60 7b",
    19: "5c c3 d0",
    20: "80 82 83 a2 b8 c2 e0 e2",
    21: "99 a1 a7 ac b0 b1 b3 d1 d8 d9 e3 e5 e6",
    22: "81 84 85 86 88 92 9a 9c a0 a3 a4 a9 aa ad b2 b5 b9 ba bb bd be c4 c6 e4 e8 e9",
    23: "1 87 89 8a 8b 8c 8d 8f 93 95 96 97 98 9b 9d 9e a5 a6 a8 ae af b4 b6 b7 bc bf c5 e7 ef",
    24: "9 8e 90 91 94 9f ab ce d7 e1 ec ed",
    25: "c7 cf ea eb",
    26: "c0 c1 c8 c9 ca cd d2 d5 da db ee f0 f2 f3 ff",
    27: "cb cc d3 d4 d6 dd de df f1 f4 f5 f6 f7 f8 fa fb fc fd fe",
    28: "2 3 4 5 6 7 8 b c e f 10 11 12 13 14 15 17 18 19 1a 1b 1c 1d 1e 1f 7f dc f9",
    30: "a d 16 100",
}
_END = 256

# What an entry of the table counts beside its texts (section 4.1), and the table's size unless settings say otherwise.
OVERHEAD = 32
TABLE = 4096


def _make_steps() -> tuple[list[tuple[int, bytes]], frozenset[int]]:
    """Makes the steps, and the nodes where a text may end.

    A step, of each node within a code by the four bits that follow, is the next node, and the symbol that ended, if one
    did. Nodes are in sixteens, so that the bits are added.
    """
    nodes = [[0, 0], [1, 1]]  # where a zero and a one lead, the first where a code begins; none leads out of the second
    code = previous = 0
    for length, symbols in _LENGTHS.items():
        for symbol in (int(text, 16) for text in symbols.split()):
            code <<= length - previous
            previous = length
            node = 0
            for shift in range(length - 1, 0, -1):
                bit = code >> shift & 1
                if not nodes[node][bit]:
                    nodes[node][bit] = len(nodes)
                    nodes.append([0, 0])
                node = nodes[node][bit]
            nodes[node][code & 1] = 1 if symbol == _END else ~symbol
            code += 1
    steps = []
    for start in range(len(nodes)):
        for bits in range(16):
            node, text = start, b""  # no code is shorter than five bits
            for shift in (3, 2, 1, 0):
                node = nodes[node][bits >> shift & 1]
                if node < 0:
                    node, text = 0, bytes((~node,))
            steps.append((node * 16, text))
    # Padding is of ones, and shorter than a byte.
    ends = [0]
    while len(ends) < 8:
        ends.append(nodes[ends[-1]][1])
    return steps, frozenset(node * 16 for node in ends)


_STEPS, _ENDS = _make_steps()


class HpackError(ValueError):
    """The bytes are no header block; what follows on the connection cannot be read either."""


def decode_text(data: bytes) -> bytes:
    """Decodes a Huffman code. Raises HpackError."""
    found = bytearray()
    state, steps = 0, _STEPS
    for byte in data:
        state, text = steps[state + (byte >> 4)]
        found += text
        state, text = steps[state + (byte & 15)]
        found += text
    if state not in _ENDS:
        raise HpackError("a Huffman code ends wrongly, or holds its end")
    return bytes(found)


class Decoder:
    """Of one connection, whose blocks must all be given to it, in their order.

    `changes` counts those of its table: until the next, blocks of the same bytes have the same fields.
    """

    def __init__(self, most: int) -> None:
        """most: bytes of a block, and of its fields, each counted with `OVERHEAD`."""
        self._most = most
        self._entries: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self._limit = TABLE
        self.changes = 0

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]] | None:
        """Decodes the fields; None where they are more than may be. Raises HpackError."""
        fields: list[tuple[bytes, bytes]] = []
        offset, end, size, most = 0, len(block), 0, self._most
        if end > most:
            most = -1
        try:
            while offset < end:
                first = block[offset]
                if first & 0x80:
                    number, offset = _number(block, offset, 7)
                    field = self._entry(number)
                elif first & 0x40:
                    field, offset = self._literal(block, offset, 6)
                    self._add(field)
                elif first & 0x20:
                    if size:
                        raise HpackError("the table's size changes within a block")
                    number, offset = _number(block, offset, 5)
                    self._resize(number)
                    continue
                elif size > most:
                    offset = _skip_literal(block, offset)
                    continue
                else:
                    field, offset = self._literal(block, offset, 4)
                size += len(field[0]) + len(field[1]) + OVERHEAD
                # What is too much is not kept; but the table must be as the client has it.
                if size <= most:
                    fields.append(field)
        except IndexError:
            raise HpackError("a header block ends too early") from None
        return fields if size <= most else None

    def _literal(self, block: bytes, offset: int, bits: int) -> tuple[tuple[bytes, bytes], int]:
        number, offset = _number(block, offset, bits)
        if number:
            name = self._entry(number)[0]
        else:
            name, offset = _text(block, offset)
        value, offset = _text(block, offset)
        return (name, value), offset

    def _entry(self, number: int) -> tuple[bytes, bytes]:
        if 0 < number <= len(STATIC):
            return STATIC[number - 1]
        if not 0 < number - len(STATIC) <= len(self._entries):
            raise HpackError(f"there is no entry {number}")
        return self._entries[number - len(STATIC) - 1]

    def _add(self, field: tuple[bytes, bytes]) -> None:
        self.changes += 1
        self._entries.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + OVERHEAD
        self._shrink()

    def _resize(self, size: int) -> None:
        if size > TABLE:
            raise HpackError(f"a table of {size} bytes")
        self.changes += 1
        self._limit = size
        self._shrink()

    def _shrink(self) -> None:
        while self._size > self._limit:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + OVERHEAD


def _number(block: bytes, offset: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    number = block[offset] & most
    offset += 1
    if number < most:
        return number, offset
    for shift in range(0, 28, 7):
        byte = block[offset]
        offset += 1
        number += (byte & 127) << shift
        if byte < 128:
            return number, offset
    raise HpackError("a number that is too large")


def _skip_literal(block: bytes, offset: int) -> int:
    """Returns the end of a field that is neither wanted nor changes the table."""
    number, offset = _number(block, offset, 4)
    for _ in range(1 if number else 2):
        size, offset = _number(block, offset, 7)
        offset += size
    if offset > len(block):
        raise HpackError("a header block ends too early")
    return offset


def _text(block: bytes, offset: int) -> tuple[bytes, int]:
    coded = block[offset] & 0x80
    size, offset = _number(block, offset, 7)
    text = block[offset : offset + size]
    if len(text) < size:
        raise HpackError("a header block ends too early")
    return decode_text(text) if coded else text, offset + size


# Begins a block whose writer's table holds nothing from here on, section 6.3.
NO_TABLE = b"\x20"


def encode(fields: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Makes a block of literals, which changes no table."""
    return b"".join(b"\0" + _sized(name) + _sized(value) for name, value in fields)


def _sized(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    head = bytearray((127,))
    size -= 127
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes((size,)) + text
