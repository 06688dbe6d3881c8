"""Turns JSON text into immutable values, by the types of their fields: facts, plans, and torchpard's answers.

Whatever the text is, it becomes such a value or an error that says where in it what is wrong. Numbers are finite and
fit a machine's, text is text, and a set of CPUs is one that a kernel can have.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import typing
from collections.abc import Mapping
from typing import Any, NewType, TypeVar

from torchpar.contract.cpulist import MAX_NUMBER, CpuSet
from torchpar.contract.errors import printable

T = TypeVar("T")

# Text of a person, such as the value of a variable, which may have tabs and line breaks; a `str` is a line.
Text = NewType("Text", str)

_MOST = 2**63 - 1

# Half a letter, the end of a C string, and in a line all control letters.
_NOT_IN_TEXTS = re.compile("[\ud800-\udfff\0]")
_NOT_IN_LINES = re.compile("[\ud800-\udfff\0-\x1f\x7f-\x9f]")


class ShapeError(Exception):
    """JSON data of another shape; the message says where it is wrong: "numa_nodes[2].cpus: is text"."""


def parse_json(text: str | bytes) -> Any:
    """Parses any JSON data. Raises ShapeError, also for data nested too deep and for numbers of thousands of digits."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ShapeError("is not JSON that torchpar writes (it is nested too deep)") from None
    except ValueError as error:
        raise ShapeError(f"is not JSON ({printable(str(error), 100)})") from None


def shape(data: Any, kind: type[T], where: str = "") -> T:
    """Makes a value of a dataclass out of JSON data; other fields than its own are passed over. Raises ShapeError."""
    return typing.cast(T, _shape(data, kind, where))


def _shape(data: Any, kind: Any, where: str) -> Any:  # noqa: C901 - a branch for each kind of type
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in arguments:
        if data is None:
            return None
        return _shape(data, next(a for a in arguments if a is not type(None)), where)
    if kind is CpuSet:
        return _cpus(data, where)
    if dataclasses.is_dataclass(kind):
        return _fields(data, kind, where)
    if origin is tuple:
        if isinstance(data, list):
            return tuple(_shape(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(data))
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(data, dict):
            return {_text(key, where): _shape(item, arguments[1], _in(where, key)) for key, item in data.items()}
    elif kind is str or kind is Text:
        if isinstance(data, str):
            return _text(data, where, is_line=kind is str)
    elif kind is float:
        if type(data) in (int, float) and abs(data) <= _MOST and math.isfinite(data):
            return float(data)
    elif kind is int:
        # JSON's true is an int for Python.
        if type(data) is int and abs(data) <= _MOST:
            return data
    elif type(data) is kind:
        return data
    raise ShapeError(f"{where}: {_describe(data)} is not what is expected there")


def _fields(data: Any, kind: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ShapeError(f"{where}: {_describe(data)} is not what is expected there")
    values = {}
    for name, (hint, required) in _fields_of(kind).items():
        if name in data:
            values[name] = _shape(data[name], hint, _in(where, name))
        elif required:
            raise ShapeError(f"{where}: field '{name}' is missing" if where else f"field '{name}' is missing")
    return kind(**values)


@functools.cache
def _fields_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Returns the type of each field, and whether it has no default."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(kind)
    }


def _cpus(data: Any, where: str) -> CpuSet:
    if isinstance(data, str):
        try:
            return CpuSet.parse(data)
        except ValueError as error:
            raise ShapeError(f"{where}: {printable(str(error), 100)}") from None
    if isinstance(data, list):
        for number in data:
            if type(number) is not int or not 0 <= number <= MAX_NUMBER:
                raise ShapeError(f"{where}: {_describe(number)} is no number from 0 to {MAX_NUMBER}")
        return CpuSet(data)
    raise ShapeError(f"{where}: {_describe(data)} is no set of numbers")


def _text(data: str, where: str, *, is_line: bool = True) -> str:
    """Returns the text. Raises ShapeError for what can be in none, and for what cannot be in a line."""
    if bad := (_NOT_IN_LINES if is_line else _NOT_IN_TEXTS).search(data):
        raise ShapeError(f"{where}: has a letter that no text has: {printable(bad[0])}")
    return data


def _in(where: str, name: str) -> str:
    return f"{where}.{printable(name, 60)}" if where else printable(name, 60)


def _describe(data: Any) -> str:
    if isinstance(data, (list, dict)):
        return "a list" if isinstance(data, list) else "an object"
    text = data if isinstance(data, str) else json.dumps(data)
    return f"'{printable(text, 40)}'" if isinstance(data, str) else printable(text, 40)
