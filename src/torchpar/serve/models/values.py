"""Between the protocol's bytes and torch's tensors, without numpy."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import torch

from torchpar.serve.engine.columns import Column, elements, lay
from torchpar.serve.errors import OutputError
from torchpar.serve.tensors import TORCH_NAMES, Tensor

# Debian 12's torch has no unsigned 16, 32 and 64.
DTYPES: dict[str, Any] = {
    datatype: getattr(torch, name) for datatype, name in TORCH_NAMES.items() if hasattr(torch, name)
}
DATATYPES: dict[Any, str] = {dtype: datatype for datatype, dtype in DTYPES.items()}


def bytes_of(tensor: Any) -> memoryview:
    """Returns the bytes of a contiguous tensor on the CPU, to be written to; it lives as long as they do."""
    size = tensor.numel() * tensor.element_size()
    array: Any = (ctypes.c_char * size).from_address(tensor.data_ptr()) if size else (ctypes.c_char * 0)()
    array.owner = tensor
    return memoryview(array).cast("B")


def value_of(column: Column) -> Any:
    """Makes the input that a program gets: a tensor, or a list for BYTES.

    Fresh memory each time: a model may return its input, and the answer must outlive the next batch.
    """
    if column.datatype == "BYTES":
        return elements(column.parts)
    if column.datatype == "BOOL":
        # Any other byte than 0 and 1 in a bool tensor is undefined behaviour in torch.
        raw = torch.empty(column.shape, dtype=torch.uint8)
        lay(column.parts, bytes_of(raw))
        return raw.ne(0)
    tensor = torch.empty(column.shape, dtype=DTYPES[column.datatype])
    lay(column.parts, bytes_of(tensor))
    return tensor


def tensor_of(name: str, value: Any) -> Tensor:
    """Turns a program's output into wire form. The bytes are a copy: a model may write to its buffer again.

    Raises OutputError for what is neither a dense tensor of a known datatype, bytes, nor a list or nesting of strings.
    """
    if isinstance(value, torch.Tensor):
        datatype = DATATYPES.get(value.dtype)
        if datatype is None:
            raise OutputError(f"output '{name}' is of {value.dtype}, which the protocol does not have")
        if value.layout is not torch.strided or value.is_nested or value.is_meta:
            kind = "nested" if value.is_nested else "on no device" if value.is_meta else f"laid out as {value.layout}"
            raise OutputError(f"output '{name}' is {kind}: a dense tensor is expected, as to_dense() makes of most")
        # Signs that torch has only noted, as of a conjugate's imaginary part, and zeros that it keeps no memory for.
        dense = value.detach().clone() if value._is_zerotensor() else value.detach().resolve_neg()
        dense = dense.cpu().contiguous()
        size = dense.numel() * dense.element_size()
        return Tensor(name, datatype, tuple(dense.shape), ctypes.string_at(dense.data_ptr(), size) if size else b"")
    if isinstance(value, list):
        return _strings(name, value)
    if isinstance(value, (bool, int, float)):
        return tensor_of(name, torch.tensor(value))
    raise OutputError(f"output '{name}' is a {type(value).__name__}: a torch.Tensor or a list of strings is expected")


def _strings(name: str, value: Any) -> Tensor:
    shape: list[int] = []
    level: list[Any] = [value]
    while level and all(isinstance(part, list) for part in level):
        shape.append(len(level[0]))
        level = [element for part in level for element in part]
    if math.prod(shape) != len(level) or not all(isinstance(element, (str, bytes)) for element in level):
        raise OutputError(f"output '{name}': a torch.Tensor, or a list of strings of even lengths, is expected")
    data = [element.encode() if isinstance(element, str) else element for element in level]
    return Tensor(name, "BYTES", tuple(shape), data)


def tensors_of(results: Mapping[str, Any]) -> list[Tensor]:
    """Turns all outputs into wire form."""
    return [tensor_of(name, value) for name, value in results.items()]
