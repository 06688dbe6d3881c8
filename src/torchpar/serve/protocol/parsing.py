"""Parses the JSON of a request: what comes in which form, and what is wanted back.

A client sends the same JSON again and again, with other bytes after it; so a layout is kept and found again by the
JSON's text, and understanding costs one look-up.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from torchpar.serve.errors import ServeError
from torchpar.serve.protocol.layout import Input, Layout, Wanted, check_number, check_size, describe_input, make_layout

try:
    from orjson import loads as fast_loads
except ImportError:  # Debian 12 has none
    fast_loads = None

# From here on orjson makes floats of whole numbers.
_FLOATS_FROM = 2.0**63


def parse_layout(text: bytes | memoryview) -> Layout:
    """Understands the JSON of a request. Raises ServeError 400."""
    fields = _parse_tensors(text)
    if not isinstance(fields, dict):
        raise ServeError(400, "the request is not a JSON object")
    parameters = dict(_object(fields, "parameters"))
    if any(type(value) is float and abs(value) >= _FLOATS_FROM for value in parameters.values()):
        parameters = dict(_object(parse_json(text), "parameters"))
    binary = parameters.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise ServeError(400, "parameter 'binary_data_output' is not true or false")
    id_ = fields.get("id", "")
    if not isinstance(id_, str):
        raise ServeError(400, "'id' is not a string")
    inputs = fields.get("inputs")
    if not isinstance(inputs, list):
        raise ServeError(400, "'inputs' is not an array of tensors")
    check_number("inputs", inputs)
    outputs = fields.get("outputs")
    if outputs is not None and not isinstance(outputs, list):
        raise ServeError(400, "'outputs' is not an array")
    check_number("outputs", outputs or ())
    for name, value in parameters.items():
        if not isinstance(value, (str, int, float, bool)):
            raise ServeError(400, f"parameter '{name:.40}' is not a string, a number, true or false")
    asked = [_parse_output(item) for item in outputs or ()]
    layout = make_layout(list(map(_parse_input, inputs)), asked, _parse_forms(asked, binary), id_, parameters)
    if not inputs:
        raise ServeError(400, "'inputs' is an empty array")
    return layout


def _parse_tensors(text: bytes | memoryview) -> Any:
    """Parses JSON of which most is numbers, with orjson where it is: that takes an eighth of the time.

    What it refuses, NaN and other encodings among it, the standard library has the last word on. The values of tensors
    are the same: a whole number beyond 64 bits is a float for one and no integer of the protocol's for the other.
    """
    if fast_loads is not None:
        try:
            return fast_loads(text)
        except ValueError:
            pass
    return parse_json(text)


_LARGE_EXPONENTS = re.compile(rb"e\+?\d{3}"), re.compile(rb"E\+?\d{3}")


def _may_be_too_large(data: bytes) -> bool:
    """Looks for what any number beyond the doubles has: an exponent of three digits, or hundreds of digits."""
    if any(each.search(data) for each in _LARGE_EXPONENTS) or b"\0" in data:  # UTF-16 has other bytes
        return True
    # Two hundred digits have a hundred that begin here.
    return any(data[start : start + 100].isdigit() for start in range(0, len(data), 100))


def _finite(text: str) -> float:
    """Parses a number. Raises ValueError for one that Python would take for an infinity, which is another word."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is larger than any datatype has")
    return value


def parse_json(text: bytes | bytearray | memoryview) -> Any:
    """Parses JSON, however it is built. Raises ServeError 400."""
    data = bytes(text)
    try:
        # Asking Python about each number takes its time.
        return json.loads(data, parse_float=_finite if _may_be_too_large(data) else None)
    except RecursionError:
        raise ServeError(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise ServeError(400, f"not JSON: {str(error)[:100]}") from None


def _parse_input(item: Any) -> Input:
    name, parameters = _parse_named(item, "an input")
    described = describe_input(name, item.get("datatype"), item.get("shape"), parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        if not isinstance(item.get("data"), list):
            raise ServeError(400, f"input '{name}' has neither an array of data nor a 'binary_data_size'")
        return described._replace(values=item["data"])
    if type(size) is not int or size < 0:
        raise ServeError(400, f"input '{name}': its 'binary_data_size' is not a number of bytes")
    if "data" in item:
        raise ServeError(400, f"input '{name}' has both data and a 'binary_data_size'")
    if described.datatype != "BYTES":
        check_size(described, size)
    return described._replace(size=size)


def _parse_output(item: Any) -> tuple[str, dict[str, Any]]:
    name, parameters = _parse_named(item, "an output")
    if not isinstance(parameters.get("binary_data", False), bool):
        raise ServeError(400, f"output '{name:.40}': 'binary_data' is not true or false")
    return name, parameters


def _parse_named(item: Any, what: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ServeError(400, f"{what} is not an object with a name")
    return item["name"], _object(item, "parameters")


def _parse_forms(outputs: Iterable[tuple[str, dict[str, Any]]], binary: bool) -> Wanted:
    """Parses the form of each output that is asked for."""
    each = {name: parameters.get("binary_data", binary) for name, parameters in outputs}
    forms = set(each.values())
    return Wanted(forms.pop() if len(forms) == 1 else binary, each)


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise ServeError(400, f"'{name}' is not an object")
    check_number(name, value)
    return value
