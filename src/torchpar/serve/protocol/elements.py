"""Elements of tensors between JSON's values and the protocol's bytes, and the binary form of BYTES.

Only the standard library: numpy is not everywhere. FP16 and BF16, for which the protocol has no JSON form, are numbers
here as all others are.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torchpar.serve.errors import ServeError
from torchpar.serve.tensors import Data, Tensor

# array's and memoryview's letters.
_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}

_LENGTH = struct.Struct("<I")


def data_from_values(name: str, datatype: str, shape: Sequence[int], values: Any) -> Data:
    """Makes a tensor's data from JSON's values, flat or nested as the shape says. Raises ServeError 400."""
    if type(values) is not list:
        raise ServeError(400, f"input '{name}': its data is not an array")
    flat = flatten(name, shape, values)
    count = math.prod(shape)
    if len(flat) != count:
        raise ServeError(400, f"input '{name}' has {len(flat)} elements; its shape needs {count}")
    try:
        return _pack(datatype, flat)
    except (TypeError, ValueError, OverflowError, struct.error):
        raise ServeError(400, f"input '{name}': its data has values that are no {datatype}") from None


def flatten(name: str, shape: Sequence[int], values: list[Any]) -> list[Any]:
    """Flattens nested arrays. Raises ServeError 400 where they are nested, but not as the shape says.

    The elements would be read in another order than they were meant, with a right answer to another question.
    """
    sizes = [len(values)]
    while values and type(values[0]) is list:
        if set(map(type, values)) != {list} or len(set(map(len, values))) != 1:
            raise ServeError(400, f"input '{name}': its arrays are not of one length")
        sizes.append(len(values[0]))
        values = list(chain.from_iterable(values))
    # An empty array does not show the sizes within it.
    if len(sizes) > 1 and sizes != list(shape if values else shape[: len(sizes)]):
        raise ServeError(400, f"input '{name}': its data is nested as {sizes}, its shape is {list(shape)}")
    return values


def _pack(datatype: str, flat: list[Any]) -> Data:
    if datatype == "BYTES":
        return [value.encode() if type(value) is str else _no(value) for value in flat]
    if datatype == "BOOL":
        return bytes([value if value is True or value is False or value in (0, 1) else _no(value) for value in flat])
    if datatype == "FP16":
        return struct.pack(f"<{len(flat)}e", *flat)
    if datatype == "BF16":
        return _pack_bf16(flat)
    packed = array(_CODES[datatype], flat)
    if sys.byteorder == "big":
        packed.byteswap()
    data = packed.tobytes()
    # Where the upper halves of an infinity are nowhere, as in nearly all requests, there is none.
    if datatype == "FP32" and (b"\x80\x7f" in data or b"\x80\xff" in data):
        for value, real in zip(flat, memoryview(array("f", flat))):
            if math.isinf(real) and not (isinstance(value, float) and math.isinf(value)):
                raise OverflowError
    return data


def _no(value: Any) -> Any:
    raise TypeError(value)


def _pack_bf16(flat: list[Any]) -> bytes:
    """Packs the upper half of FP32, rounded to nearest, ties to even, as torch does.

    Raises OverflowError for a number that would be infinite.
    """
    halves = array("H")
    for bits in struct.unpack(f"<{len(flat)}I", struct.pack(f"<{len(flat)}f", *flat)):
        if bits & 0x7FFFFFFF > 0x7F800000:  # not a number: rounding could make it infinite
            halves.append(0x7FC0)
        else:
            halves.append((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
        if halves[-1] & 0x7FFF == 0x7F80 and bits & 0x7FFFFFFF != 0x7F800000:
            raise OverflowError
    if sys.byteorder == "big":
        halves.byteswap()
    return halves.tobytes()


def values_from_data(tensor: Tensor) -> list[Any]:
    """Returns a tensor's values as JSON has them, flat. Raises ServeError 400 for BYTES that are not text."""
    data = tensor.data
    if isinstance(data, list):
        try:
            return [element.decode() for element in data]
        except UnicodeDecodeError:
            raise ServeError(
                400, f"output '{tensor.name}' has bytes that are not UTF-8: JSON cannot hold them; ask for binary data"
            ) from None
    datatype = tensor.datatype
    if datatype == "BOOL":
        return [byte != 0 for byte in bytes(data)]
    if datatype == "FP16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    if datatype == "BF16":
        halves = struct.unpack(f"<{len(data) // 2}H", data)
        return list(struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(h << 16 for h in halves))))
    code = _CODES[datatype]
    if sys.byteorder == "big":
        swapped = array(code, bytes(data))
        swapped.byteswap()
        return swapped.tolist()
    return memoryview(data).cast("B").cast(code).tolist()  # type: ignore[call-overload, no-any-return]


def nested(values: list[Any], shape: tuple[int, ...]) -> Any:
    """Nests flat values as arrays of a shape; returns a scalar for shape ()."""
    if not shape:
        return values[0]
    for size in reversed(shape[1:]):
        if size == 0:
            return _empty(shape)
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def _empty(shape: tuple[int, ...]) -> list[Any]:
    return [_empty(shape[1:]) for _ in range(shape[0])] if len(shape) > 1 else []


def unpack_bytes(name: str, count: int, data: memoryview) -> list[bytes]:
    """Unpacks the elements of BYTES from their binary form: four bytes of length, then as many bytes, `count` times.

    Raises ServeError 400.
    """
    elements: list[bytes] = []
    end, size = 0, len(data)
    while end + 4 <= size and len(elements) < count:
        (length,) = _LENGTH.unpack_from(data, end)
        start, end = end + 4, end + 4 + length
        if end > size:
            break
        elements.append(bytes(data[start:end]))
    if len(elements) != count or end != size:
        raise ServeError(400, f"input '{name}': its bytes are not {count} elements, each after its length")
    return elements


def pack_bytes(elements: list[bytes]) -> bytes:
    """Packs BYTES in their binary form."""
    pieces: list[bytes] = []
    for element in elements:
        pieces.append(_LENGTH.pack(len(element)))
        pieces.append(element)
    return b"".join(pieces)
