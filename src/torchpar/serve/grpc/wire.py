"""Protocol buffers' wire format, as far as the inference protocol needs it: dictionaries to bytes and back.

Written here because the messages are few and plain, because classes made by protoc fit one release of its library only,
and because a model's own code may register messages of the same names. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_FLOAT, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")
_VARINTS = ("bool", "int32", "int64", "uint32", "uint64", "enum")
_SIXTY_FOUR = (1 << 64) - 1


class WireError(ValueError):
    """The bytes are not the message that they should be."""


@dataclass(frozen=True)
class Field:
    """One field of a message: kind is a scalar's name or a message; a map's `many` is "map", its message an entry."""

    number: int
    name: str
    kind: str
    message: Message | None = None
    many: str = ""
    names: Mapping[str, int] | None = None


class Message:
    """A message's fields, from a line of text: "1 name string, 2 shape int64*, 3 contents Contents, 4 tags {Entry}".

    `*` is repeated, `{}` a map whose entries are a message with a key and a value. `messages` are those that the line
    names; `names` the values of its enums.
    """

    def __init__(self, text: str, names: Mapping[str, int] | None = None, **messages: Message) -> None:
        self.fields: list[Field] = []
        for item in filter(None, (part.strip() for part in text.split(","))):
            number, name, kind = item.split()
            many = "map" if kind[0] == "{" else "list" if kind[-1] == "*" else ""
            kind = kind.strip("{}*")
            self.fields.append(Field(int(number), name, kind, messages.get(kind), many, names))
        self.by_number = {field.number: field for field in self.fields}

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """Encodes a message; names that the message does not have are passed over."""
        out: list[bytes] = []
        for field in self.fields:
            value = values.get(field.name)
            if value is not None:
                _encode_field(out, field, value)
        return b"".join(out)

    def decode(self, data: bytes | memoryview) -> dict[str, Any]:
        """Returns the fields that the bytes have, by name; fields that are not there are left out. Raises WireError.

        Values of `bytes` are memoryviews into the data.
        """
        view = memoryview(data)
        values: dict[str, Any] = {}
        offset, end = 0, len(view)
        while offset < end:
            key, offset = varint(view, offset)
            kind = key & 7
            if kind == 0:
                number, offset = varint(view, offset)
                found: Any = number
            elif kind == 2:
                size, offset = varint(view, offset)
                found = view[offset : offset + size]
                offset += size
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
                found = view[offset : offset + size]
                offset += size
            else:
                raise WireError(f"wire type {kind}")
            if offset > end:
                raise WireError("a field ends after its message")
            field = self.by_number.get(key >> 3)
            if field is not None:
                _decode_field(values, field, kind, found)
        return values


def structure_size(data: bytes | memoryview, number: int, most: int) -> int:
    """Counts the bytes of a message without the contents of its fields `number`: what takes time to decode.

    Counts no further than just above `most`. Raises WireError.
    """
    view = memoryview(data)
    size = offset = 0
    while offset < len(view) and size <= most:
        began = offset
        key, offset = varint(view, offset)
        kind = key & 7
        contents = 0
        if kind == 0:
            _, offset = varint(view, offset)
        elif kind == 2:
            contents, offset = varint(view, offset)
        elif kind in (1, 5):
            contents = 8 if kind == 1 else 4
        else:
            raise WireError(f"wire type {kind}")
        size += offset - began + (0 if key >> 3 == number else contents)
        offset += contents
    return size


def _encode_field(out: list[bytes], field: Field, value: Any) -> None:
    if field.many == "map":
        assert field.message is not None
        for key, inner in value.items():
            out.append(_key(field.number, 2) + _sized(field.message.encode({"key": key, "value": inner})))
    elif field.many == "list":
        if field.message is None and field.kind not in ("string", "bytes"):
            packed = b"".join(_scalar(field, each) for each in value)
            if packed:
                out.append(_key(field.number, 2) + _sized(packed))
            return
        for each in value:
            _encode_one(out, field, each)
    else:
        _encode_one(out, field, value)


def _encode_one(out: list[bytes], field: Field, value: Any) -> None:
    if field.message is not None:
        out.append(_key(field.number, 2) + _sized(field.message.encode(value)))
    elif field.kind == "string":
        out.append(_key(field.number, 2) + _sized(value.encode()))
    elif field.kind == "bytes":
        # Tensors: not copied here, only when all is joined.
        out.append(_key(field.number, 2) + encode_number(len(value)))
        out.append(value)
    else:
        out.append(_key(field.number, {"double": 1, "float": 5}.get(field.kind, 0)) + _scalar(field, value))


def _scalar(field: Field, value: Any) -> bytes:
    if field.kind == "double":
        return _DOUBLE.pack(value)
    if field.kind == "float":
        return _FLOAT.pack(value)
    if field.kind == "enum" and isinstance(value, str):
        value = (field.names or {}).get(value, 0)
    return encode_number(int(value) & _SIXTY_FOUR)


def _key(number: int, kind: int) -> bytes:
    return encode_number(number << 3 | kind)


def _sized(data: bytes) -> bytes:
    return encode_number(len(data)) + data


def encode_number(value: int) -> bytes:
    """Writes a varint: a field's key, or the size of what follows."""
    if value < 128:
        return value.to_bytes(1, "little")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint(view: memoryview, offset: int) -> tuple[int, int]:
    """Reads a varint; returns it and the offset behind it. Raises WireError."""
    value = shift = 0
    while True:
        if offset >= len(view):
            raise WireError("a number without an end")
        byte = view[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _SIXTY_FOUR, offset
        shift += 7
        if shift > 63:
            raise WireError("a number of more than ten bytes")


def _decode_field(values: dict[str, Any], field: Field, kind: int, found: Any) -> None:
    if field.message is not None:
        inner = field.message.decode(_bytes(field, kind, found))
        if field.many == "map":
            # An entry without key or value has their defaults.
            values.setdefault(field.name, {})[inner.get("key", "")] = inner.get("value", {})
        elif field.many:
            values.setdefault(field.name, []).append(inner)
        else:
            values[field.name] = {**values.get(field.name, {}), **inner}
    elif field.kind in ("string", "bytes"):
        value = _text(field, found) if field.kind == "string" and kind == 2 else _bytes(field, kind, found)
        if field.many:
            values.setdefault(field.name, []).append(value)
        else:
            values[field.name] = value
    elif field.many:
        numbers = _packed(field, found) if kind == 2 else [_value(field, kind, found)]
        values.setdefault(field.name, []).extend(numbers)
    else:
        values[field.name] = _value(field, kind, found)


def _bytes(field: Field, kind: int, found: Any) -> memoryview:
    if kind != 2:
        raise WireError(f"'{field.name}' has wire type {kind}")
    return memoryview(found)


def _text(field: Field, found: memoryview) -> str:
    try:
        return str(found, "utf-8")
    except UnicodeDecodeError:
        raise WireError(f"'{field.name}' is not UTF-8") from None


def _value(field: Field, kind: int, found: Any) -> Any:
    if field.kind == "double" and kind == 1:
        return _DOUBLE.unpack(found)[0]
    if field.kind == "float" and kind == 5:
        return _FLOAT.unpack(found)[0]
    if field.kind in _VARINTS and kind == 0:
        return _signed(field, found)
    raise WireError(f"'{field.name}' has wire type {kind}")


def _signed(field: Field, value: int) -> Any:
    if field.kind == "bool":
        return value != 0
    if field.kind == "int64":
        return value - (1 << 64) if value >> 63 else value
    if field.kind in ("int32", "enum"):
        value &= 0xFFFFFFFF
        return value - (1 << 32) if value >> 31 else value
    return value & 0xFFFFFFFF if field.kind == "uint32" else value


def _packed(field: Field, found: memoryview) -> Iterable[Any]:
    if field.kind in ("float", "double"):
        size = 4 if field.kind == "float" else 8
        if len(found) % size:
            raise WireError(f"'{field.name}' has {len(found)} bytes")
        return struct.unpack(f"<{len(found) // size}{'f' if size == 4 else 'd'}", found)
    numbers = []
    offset = 0
    while offset < len(found):
        number, offset = varint(found, offset)
        numbers.append(_signed(field, number))
    return numbers
