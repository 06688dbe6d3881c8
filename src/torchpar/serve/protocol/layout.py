"""The JSON part of an inference request, understood: what comes in which form, and what is wanted back.

A client sends the same JSON again and again, with other bytes after it; so a layout is kept and found again by the
JSON's text, and understanding costs one look-up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

from torchpar.serve.engine.requests import Request
from torchpar.serve.errors import ServeError
from torchpar.serve.limits import MAX_NAMES, MAX_TEXT
from torchpar.serve.protocol.elements import data_from_values, unpack_bytes
from torchpar.serve.tensors import SIZES, Tensor

# torch counts elements in 64 bits; what is far below that fits any other count on the way.
MAX_ELEMENTS = 1 << 40
MAX_RANK = 32


@dataclass(frozen=True)
class Wanted:
    """How the outputs are to come back.

    binary: the form of outputs that do not say. each: the form that some do say, by name. classes: outputs of which
    only the largest values are wanted, by name, and how many. uniform: all come in the form `binary`, none as classes.
    """

    binary: bool = False
    each: Mapping[str, bool] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def uniform(self) -> bool:
        """Whether all come in the form `binary`, none as classes."""
        return not self.classes and all(form == self.binary for form in self.each.values())


@dataclass(frozen=True)
class Layout:
    """A request without its bytes.

    inputs: name, datatype, shape, JSON's values (None: bytes after the JSON), and bytes and elements. timeout is in
    seconds from now, None where the client sets none.
    """

    inputs: tuple[tuple[str, str, tuple[int, ...], Any, int, int], ...]
    outputs: tuple[str, ...] | None
    wanted: Wanted
    uniform: bool
    id: str
    priority: int
    timeout: float | None
    parameters: Mapping[str, Any]

    @property
    def only_bytes(self) -> bool:
        """Whether it says nothing of the values, and so can be used for the next request too."""
        return all(values is None for _, _, _, values, _, _ in self.inputs)

    def bytes_inputs(self) -> list[str]:
        """The inputs of BYTES that come after the JSON, which are taken apart one by one."""
        return [name for name, datatype, _, values, _, _ in self.inputs if datatype == "BYTES" and values is None]

    def request(self, model: str, version: str, rest: memoryview, now: float) -> Request:
        """The request, with the bytes that came after the JSON. Raises ServeError 400."""
        inputs = []
        start = 0
        for name, datatype, shape, values, size, count in self.inputs:
            if values is not None:
                inputs.append(Tensor(name, datatype, shape, data_from_values(name, datatype, shape, values)))
                continue
            end = start + size
            if end > len(rest):
                raise ServeError(400, f"input '{name}': the body ends before its {size} bytes")
            data = rest[start:end]
            inputs.append(
                Tensor(name, datatype, shape, data if datatype != "BYTES" else unpack_bytes(name, count, data))
            )
            start = end
        if start != len(rest):
            raise ServeError(400, f"the body has {len(rest) - start} bytes that belong to no input")
        return Request(
            model,
            inputs,
            version,
            None if self.outputs is None else list(self.outputs),
            self.id,
            self.priority,
            None if self.timeout is None else now + self.timeout,
            dict(self.parameters),
        )


def parse_layout(text: bytes | memoryview) -> Layout:
    """Understand the JSON of a request. Raises ServeError 400."""
    fields = parse_json(text)
    if not isinstance(fields, dict):
        raise ServeError(400, "the request is not a JSON object")
    parameters = dict(_object(fields, "parameters"))
    binary = parameters.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise ServeError(400, "parameter 'binary_data_output' is not true or false")
    id_ = fields.get("id", "")
    if not isinstance(id_, str):
        raise ServeError(400, "'id' is not a string")
    _check_text("'id'", id_)
    timeout = number(parameters, "timeout", 1 << 62)
    priority = number(parameters, "priority", 1 << 32)
    inputs = fields.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise ServeError(400, "'inputs' is not an array of tensors")
    _check_number("inputs", inputs)
    parsed = tuple(_parse_input(item) for item in inputs)
    if len({name for name, *_ in parsed}) != len(parsed):
        raise ServeError(400, "two inputs have the same name")
    outputs, wanted = _parse_outputs(fields.get("outputs"), binary)
    for name, value in parameters.items():
        _check_text("a parameter", name, value)
        if not isinstance(value, (str, int, float, bool)):
            raise ServeError(400, f"parameter '{name}' is not a string, a number, true or false")
    seconds = timeout / 1e6 if timeout else None
    return Layout(parsed, outputs, wanted, wanted.uniform, id_, priority, seconds, parameters)


def parse_json(text: bytes | bytearray | memoryview) -> Any:
    """JSON, however it is built. Raises ServeError 400."""
    try:
        return json.loads(bytes(text))
    except RecursionError:
        raise ServeError(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise ServeError(400, f"not JSON: {str(error)[:100]}") from None


def number(parameters: dict[str, Any], name: str, limit: int) -> int:
    """Take a whole number out of the parameters, 0 where it is not there; clients send it as a string at times."""
    value = parameters.pop(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is not int or not 0 <= value < limit:
        raise ServeError(400, f"parameter '{name}' is not a whole number from 0 on")
    return value


def check_shape(name: str, shape: Any) -> int:
    """The number of elements. Raises ServeError 400 for what is no shape, and for sizes that no machine has."""
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_RANK:
        raise ServeError(400, f"input '{name}': its shape is not an array of at most {MAX_RANK} numbers")
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise ServeError(400, f"input '{name}': its shape has {size!r:.40}")
    # Also of an empty tensor: [0, 9999999999, 9999999999] has no elements, and strides that overflow.
    if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
        raise ServeError(400, f"input '{name}': its shape is too large")
    return math.prod(shape)


def check_datatype(name: str, datatype: Any) -> int | None:
    """Bytes of an element, None for BYTES. Raises ServeError 400."""
    if not isinstance(datatype, str) or datatype not in SIZES:
        raise ServeError(400, f"input '{name}': there is no datatype {datatype!r:.40}")
    return SIZES[datatype]


def _parse_input(item: Any) -> tuple[str, str, tuple[int, ...], Any, int, int]:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ServeError(400, "an input is not an object with a name")
    name, datatype = item["name"], item.get("datatype")
    _check_text("an input's name", name)
    element = check_datatype(name, datatype)
    count = check_shape(name, item.get("shape"))
    parameters = _object(item, "parameters")
    _no_shared_memory(name, parameters)
    size = parameters.get("binary_data_size")
    shape = tuple(item["shape"])
    if size is None:
        if not isinstance(item.get("data"), list):
            raise ServeError(400, f"input '{name}' has neither an array of data nor a 'binary_data_size'")
        return name, str(datatype), shape, item["data"], 0, count
    if type(size) is not int or size < 0:
        raise ServeError(400, f"input '{name}': its 'binary_data_size' is not a number of bytes")
    if "data" in item:
        raise ServeError(400, f"input '{name}' has both data and a 'binary_data_size'")
    if element is not None and size != element * count:
        raise ServeError(400, f"input '{name}' has {size} bytes; its shape and datatype need {element * count}")
    return name, str(datatype), shape, None, size, count


def _parse_outputs(outputs: Any, binary: bool) -> tuple[tuple[str, ...] | None, Wanted]:
    if outputs is None:
        return None, Wanted(binary)
    if not isinstance(outputs, list):
        raise ServeError(400, "'outputs' is not an array")
    # To most clients an empty list is the same as none.
    if not outputs:
        return None, Wanted(binary)
    _check_number("outputs", outputs)
    each: dict[str, bool] = {}
    classes: dict[str, int] = {}
    for item in outputs:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ServeError(400, "an output is not an object with a name")
        name = item["name"]
        _check_text("an output's name", name)
        if name in each:
            raise ServeError(400, f"output '{name}' is asked for twice")
        parameters = _object(item, "parameters")
        _no_shared_memory(name, parameters)
        each[name] = form = parameters.get("binary_data", binary)
        if not isinstance(form, bool):
            raise ServeError(400, f"output '{name}': 'binary_data' is not true or false")
        if "classification" in parameters:
            classes[name] = number(dict(parameters), "classification", 1 << 31)
            if classes[name] == 0:
                raise ServeError(400, f"output '{name}': 'classification' is 0")
    forms = set(each.values())
    return tuple(each), Wanted(forms.pop() if len(forms) == 1 else binary, each, classes)


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise ServeError(400, f"'{name}' is not an object")
    _check_number(name, value)
    return value


def _check_number(name: str, items: Sized) -> None:
    if len(items) > MAX_NAMES:
        raise ServeError(400, f"there are {len(items)} {name}; the limit is {MAX_NAMES}")


def _check_text(what: str, *texts: Any) -> None:
    for text in texts:
        if isinstance(text, str) and len(text) > MAX_TEXT:
            raise ServeError(400, f"{what} has {len(text)} characters; the limit is {MAX_TEXT}")


def _no_shared_memory(name: str, parameters: Mapping[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise ServeError(400, f"'{name}' is in shared memory, which this server does not map; send the tensor itself")
