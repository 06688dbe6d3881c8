"""The description that may stand beside or in a model file: names, datatypes and shapes.

    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 784]}],
     "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
     "max_batch": 64,
     "optimize": true,
     "example": {"x": [[0.5, ...]]}}

For a file `model.pt` it is `model.json` beside it, or an extra file "torchpar.json" within
(`torch.jit.save(..., _extra_files={"torchpar.json": text})`, `torch.export.save(..., extra_files=...)`). The first
dimension -1 means rows: requests may be put together there. Shapes have all dimensions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torchpar.serve.errors import ModelError
from torchpar.serve.tensors import SIZES, TensorSpec

INSIDE = "torchpar.json"

_KEYS = ("inputs", "outputs", "max_batch", "example", "optimize")


@dataclass(frozen=True)
class Description:
    """The contents of a description; empty or None where it says nothing. max_batch 0 or 1: never batched.

    example holds the inputs' values as nested lists, by name, as they are in the JSON. optimize: TorchScript is frozen
    and prepared for this machine when it is loaded, which changes its numbers by rounding.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    max_batch: int | None = None
    example: Any = None
    optimize: bool | None = None

    def over(self, other: Description) -> Description:
        """Completes this description with the other's values where it leaves them open."""
        return Description(
            inputs=self.inputs or other.inputs,
            outputs=self.outputs or other.outputs,
            max_batch=other.max_batch if self.max_batch is None else self.max_batch,
            example=other.example if self.example is None else self.example,
            optimize=other.optimize if self.optimize is None else self.optimize,
        )

    def refuse_optimize(self, path: str) -> None:
        """Raises ModelError where it asks for what is done with TorchScript alone."""
        if self.optimize:
            raise ModelError(f'{path}: its description has "optimize", which is for TorchScript (.pt): leave it out')


def parse_description(text: str, where: str) -> Description:
    """Parses the text; `where` names it in the messages. Raises ModelError."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ModelError(f"{where}: not a description: it is nested too deep") from None
    except ValueError as error:
        raise ModelError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f'{where}: an object is expected, such as {{"inputs": [...], "outputs": [...]}}')
    unknown = sorted(set(data) - set(_KEYS))
    if unknown:
        raise ModelError(f"{where}: unknown key '{unknown[0]}'; known: {', '.join(_KEYS)}")
    if type(data.get("optimize", False)) is not bool:
        raise ModelError(f"{where}: optimize: true or false is expected")
    return Description(
        inputs=_parse_specs(data, "inputs", where),
        outputs=_parse_specs(data, "outputs", where),
        max_batch=limit_of(data.get("max_batch"), f"{where}: max_batch"),
        example=data.get("example"),
        optimize=data.get("optimize"),
    )


def limit_of(value: Any, where: str) -> int | None:
    """Parses the most rows of one batch; 0 or 1: never batched. Raises ModelError for anything but such a number."""
    if value is not None and (type(value) is not int or value < 0):
        raise ModelError(f"{where}: a number of rows is expected, not {value!r:.40}")
    return value


def _parse_specs(data: dict[str, Any], key: str, where: str) -> tuple[TensorSpec, ...]:
    return specs_of(data.get(key, []), f"{where}: {key}")


def specs_of(entries: Any, where: str) -> tuple[TensorSpec, ...]:
    """Parses a list of objects such as {"name": "x", "datatype": "FP32", "shape": [-1, 784]}. Raises ModelError."""
    if not isinstance(entries, list):
        raise ModelError(f"{where}: a list is expected")
    specs = tuple(_parse_spec(entry, f"{where}[{i}]") for i, entry in enumerate(entries))
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ModelError(f"{where}: a name stands there twice")
    return specs


def _parse_spec(entry: Any, where: str) -> TensorSpec:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ModelError(f'{where}: expected is {{"name": "x", "datatype": "FP32", "shape": [-1, 784]}}')
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype not in SIZES:
        raise ModelError(f"{where}: datatype {datatype!r:.40}: expected is one of {', '.join(SIZES)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise ModelError(f"{where}: shape: a list of sizes is expected, -1 for those that a request chooses")
    return TensorSpec(entry["name"], datatype, tuple(shape))
