"""Tensors as they travel: the datatypes of the Open Inference Protocol, their sizes, and what a model declares.

Knows nothing of torch, HTTP or JSON. Values are bytes in C order, little endian, as the protocol's binary form has
them; elements of BYTES, which have no fixed size, are a list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

# Bytes of one element; None: every element has its own length.
SIZES: dict[str, int | None] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": None,
}

# torch.float32 for "FP32" is getattr(torch, TORCH_NAMES["FP32"]). Older torch lacks some: ask, do not assume.
TORCH_NAMES: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
}

Data = Union[bytes, bytearray, memoryview, "list[bytes]"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output that a model declares.

    shape: -1 is a dimension that a request chooses, within limits: the least and the largest size of each dimension,
    None where nothing bounds it; empty where nothing bounds any.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    limits: tuple[tuple[int, int | None], ...] = ()

    def fits(self, shape: Sequence[int]) -> bool:
        """Says whether a tensor of this shape fits."""
        return (
            len(shape) == len(self.shape)
            and all(have == want or want == -1 for have, want in zip(shape, self.shape))
            and all(low <= have and (high is None or have <= high) for have, (low, high) in zip(shape, self.limits))
        )

    def __str__(self) -> str:
        """Returns datatype and shape, for messages."""
        bounds = [
            f"dimension {i} {f'from {low} ' if low else ''}{'on' if high is None else f'to {high}'}"
            for i, (low, high) in enumerate(self.limits)
            if self.shape[i] == -1 and (low, high) != (0, None)
        ]
        return f"{self.datatype} of shape {list(self.shape)}{' (' + ', '.join(bounds) + ')' if bounds else ''}"

    def to_json(self) -> dict[str, Any]:
        """Makes JSON data for another process."""
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape, "limits": self.limits}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        """Makes a TensorSpec of the data of `to_json`."""
        limits = tuple((low, high) for low, high in data["limits"])
        return cls(data["name"], data["datatype"], tuple(data["shape"]), limits)


@dataclass
class Tensor:
    """One input or output of one request.

    data holds the elements in C order, little endian: bytes, bytearray or a memoryview of format "B"; for BYTES a list
    with one bytes object an element. What is in a request must stay as it is until the request is done; what is in a
    response is the receiver's.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data


def byte_size(datatype: str, shape: Sequence[int]) -> int | None:
    """Counts the bytes of a tensor's data; None for BYTES. Raises KeyError for a datatype that the protocol lacks."""
    size = SIZES[datatype]
    return None if size is None else size * math.prod(shape)
