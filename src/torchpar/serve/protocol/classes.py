"""The classification extension: of an output, only the largest values and where they are."""

from __future__ import annotations

import heapq

from torchpar.serve.errors import ServeError
from torchpar.serve.protocol.elements import values_from_data
from torchpar.serve.tensors import Tensor


def largest(tensor: Tensor, count: int) -> Tensor:
    """Returns the `count` largest values of each row, as BYTES "VALUE:INDEX", the largest first.

    Dimension 0 is the rows, unless the tensor has only one, which then is the one row.
    """
    if tensor.datatype in ("BYTES", "BOOL"):
        raise ServeError(400, f"output '{tensor.name}' is {tensor.datatype}: there are no classes in it")
    values = values_from_data(tensor)
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    width = len(values) // rows if rows else 0
    count = min(count, width)
    integer = "FP" not in tensor.datatype and tensor.datatype != "BF16"
    elements: list[bytes] = []
    for start in range(0, len(values), width or 1):
        row = values[start : start + width]
        for index in heapq.nlargest(count, range(width), key=row.__getitem__):
            text = str(row[index]) if integer else f"{row[index]:f}"
            elements.append(f"{text}:{index}".encode())
    shape = (rows, count) if len(tensor.shape) > 1 else (count,)
    return Tensor(tensor.name, "BYTES", shape, elements)
