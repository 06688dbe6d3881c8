"""Between the protocol's bytes and torch's tensors, without numpy and without a copy where there can be none."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from torchpar.serve.tensors import TORCH_NAMES

# Debian 12's torch has no unsigned 16, 32 and 64.
DTYPES: dict[str, Any] = {
    datatype: getattr(torch, name) for datatype, name in TORCH_NAMES.items() if hasattr(torch, name)
}
DATATYPES: dict[Any, str] = {dtype: datatype for datatype, dtype in DTYPES.items()}


def empty_input(datatype: str, shape: Sequence[int]) -> tuple[Any, memoryview]:
    """A tensor to compute with, and its bytes to write to."""
    tensor = torch.empty(tuple(shape), dtype=DTYPES[datatype])
    return tensor, bytes_of(tensor)


def bytes_of(tensor: Any) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, which lives as long as they do."""
    size = tensor.numel() * tensor.element_size()
    array: Any = (ctypes.c_char * size).from_address(tensor.data_ptr()) if size else (ctypes.c_char * 0)()
    array.owner = tensor
    return memoryview(array).cast("B")
