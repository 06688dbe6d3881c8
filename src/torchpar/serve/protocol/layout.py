"""Describes an inference request apart from its bytes, and checks it; HTTP and gRPC both make theirs of it.

What the protocols write differently is read where each of them is: protocol/parsing.py and grpc/inference.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torchpar.serve.engine.requests import Request
from torchpar.serve.errors import ServeError
from torchpar.serve.limits import MAX_NAMES, MAX_TEXT
from torchpar.serve.protocol.elements import data_from_values, unpack_bytes
from torchpar.serve.tensors import SIZES, Data, Tensor

# torch counts elements in 64 bits; what is far below that fits any other count on the way.
MAX_ELEMENTS = 1 << 40
MAX_RANK = 32


@dataclass(frozen=True)
class Wanted:
    """The form in which the outputs are to come back.

    binary: the form of outputs that do not say. each: the form that some do say, by name. classes: outputs of which
    only the largest values are wanted, by name, and how many. uniform: all come in the form `binary`, none as classes.
    """

    binary: bool = False
    each: Mapping[str, bool] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def uniform(self) -> bool:
        """Says whether all come in the form `binary`, none as classes."""
        return not self.classes and all(form == self.binary for form in self.each.values())


class Input(NamedTuple):
    """One input without its bytes.

    elements: how many. values: JSON's, None where bytes come apart from the description; size: of these, where it says.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: int
    values: Any = None
    size: int = 0

    def tensor(self, data: Data) -> Tensor:
        """Makes the tensor of these bytes, or of these elements of BYTES. Raises ServeError 400."""
        if self.datatype != "BYTES":
            check_size(self, len(data))
        elif not isinstance(data, list):
            data = unpack_bytes(self.name, self.elements, memoryview(data))
        elif len(data) != self.elements:
            raise ServeError(400, f"input '{self.name}' has {len(data)} elements; its shape needs {self.elements}")
        return Tensor(self.name, self.datatype, self.shape, data)


@dataclass(frozen=True)
class Layout:
    """A request without its bytes. timeout is in seconds from now, None where the client sets none."""

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...] | None
    wanted: Wanted
    uniform: bool
    id: str
    priority: int
    timeout: float | None
    parameters: Mapping[str, Any]

    @property
    def only_bytes(self) -> bool:
        """Says whether it has no values in its JSON, and so can be used for the next request too."""
        return all(each.values is None for each in self.inputs)

    def bytes_inputs(self) -> list[str]:
        """Returns the inputs of BYTES that come after the JSON, which are taken apart one by one."""
        return [each.name for each in self.inputs if each.datatype == "BYTES" and each.values is None]

    def request(self, model: str, version: str, rest: memoryview, now: float) -> Request:
        """Makes the request, with the bytes that came after the JSON. Raises ServeError 400."""
        tensors = []
        start = 0
        for each in self.inputs:
            if each.values is not None:
                data = data_from_values(each.name, each.datatype, each.shape, each.values)
                tensors.append(Tensor(each.name, each.datatype, each.shape, data))
                continue
            end = start + each.size
            if end > len(rest):
                raise ServeError(400, f"input '{each.name}': the body ends before its {each.size} bytes")
            tensors.append(each.tensor(rest[start:end]))
            start = end
        if start != len(rest):
            raise ServeError(400, f"the body has {len(rest) - start} bytes that belong to no input")
        return self.request_of(model, version, tensors, now)

    def request_of(
        self, model: str, version: str, tensors: list[Tensor], now: float, remaining: float | None = None
    ) -> Request:
        """Makes the request of these tensors. remaining: seconds that the client waits, where it says so twice."""
        waits = [seconds for seconds in (self.timeout, remaining) if seconds is not None]
        return Request(
            model,
            tensors,
            version,
            None if self.outputs is None else list(self.outputs),
            self.id,
            self.priority,
            now + min(waits) if waits else None,
            dict(self.parameters),
        )


def make_layout(
    inputs: Sequence[Input],
    outputs: Sequence[tuple[str, Mapping[str, Any]]],
    forms: Wanted,
    id_: str,
    parameters: Mapping[str, Any],
) -> Layout:
    """Puts a request's parts together. Raises ServeError 400.

    outputs: name and parameters of each that is asked for; to most clients none is the same as all. forms: how they are
    to come back, but for the classes.
    """
    check_text("'id'", id_)
    parameters = dict(parameters)
    timeout = number(parameters, "timeout", 1 << 62)
    priority = number(parameters, "priority", 1 << 32)
    if len({each.name for each in inputs}) != len(inputs):
        raise ServeError(400, "two inputs have the same name")
    names: set[str] = set()
    classes: dict[str, int] = {}
    for name, asked in outputs:
        check_text("an output's name", name)
        if name in names:
            raise ServeError(400, f"output '{name}' is asked for twice")
        names.add(name)
        _no_shared_memory(name, asked)
        if "classification" in asked:
            classes[name] = number(dict(asked), "classification", 1 << 31)
            if classes[name] == 0:
                raise ServeError(400, f"output '{name}': 'classification' is 0")
    for name, value in parameters.items():
        check_text("a parameter", name, value)
    wanted = Wanted(forms.binary, forms.each, classes)
    return Layout(
        tuple(inputs),
        tuple(name for name, _ in outputs) or None,
        wanted,
        wanted.uniform,
        id_,
        priority,
        timeout / 1e6 if timeout else None,
        parameters,
    )


def describe_input(name: str, datatype: Any, shape: Any, parameters: Mapping[str, Any]) -> Input:
    """Checks one input. Raises ServeError 400."""
    check_text("an input's name", name)
    check_datatype(name, datatype)
    elements = check_shape(name, shape)
    _no_shared_memory(name, parameters)
    return Input(name, datatype, tuple(shape), elements)


def number(parameters: dict[str, Any], name: str, limit: int) -> int:
    """Takes a whole number out of the parameters, 0 where it is not there; clients send it as a string at times."""
    value = parameters.pop(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is not int or not 0 <= value < limit:
        raise ServeError(400, f"parameter '{name}' is not a whole number from 0 on")
    return value


def check_shape(name: str, shape: Any) -> int:
    """Counts the elements. Raises ServeError 400 for anything but a shape, and for sizes that no machine has."""
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_RANK:
        raise ServeError(400, f"input '{name}': its shape is not an array of at most {MAX_RANK} numbers")
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise ServeError(400, f"input '{name}': its shape has {size!r:.40}")
    # Also of an empty tensor: [0, 9999999999, 9999999999] has no elements, and strides that overflow.
    if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
        raise ServeError(400, f"input '{name}': its shape is too large")
    return math.prod(shape)


def check_datatype(name: str, datatype: Any) -> None:
    """Raises ServeError 400 for what is no datatype of the protocol's."""
    if not isinstance(datatype, str) or datatype not in SIZES:
        raise ServeError(400, f"input '{name}': there is no datatype {datatype!r:.40}")


def check_size(described: Input, size: int) -> None:
    """Raises ServeError 400 where so many bytes are not those of the shape and datatype, which is not BYTES."""
    whole = (SIZES[described.datatype] or 0) * described.elements
    if size != whole:
        raise ServeError(400, f"input '{described.name}' has {size} bytes; its shape and datatype need {whole}")


def check_number(name: str, items: Sized) -> None:
    """Raises ServeError 400 where there are too many."""
    if len(items) > MAX_NAMES:
        raise ServeError(400, f"there are {len(items)} {name}; the limit is {MAX_NAMES}")


def check_text(what: str, *texts: Any) -> None:
    """Raises ServeError 400 where one is too long."""
    for text in texts:
        if isinstance(text, str) and len(text) > MAX_TEXT:
            raise ServeError(400, f"{what} has {len(text)} characters; the limit is {MAX_TEXT}")


def _no_shared_memory(name: str, parameters: Mapping[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise ServeError(400, f"'{name}' is in shared memory, which this server does not map; send the tensor itself")
