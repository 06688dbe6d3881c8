"""A batch on its way through a model: the inputs of several requests laid one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchpar.serve.tensors import Tensor


@dataclass
class Column:
    """One input of a batch: the parts, one a request, follow each other along the first dimension of `shape`."""

    datatype: str
    shape: tuple[int, ...]
    parts: Sequence[Any]


@dataclass
class Computed:
    """The outputs of one batch, and two times in time.monotonic() seconds: its input was laid out, and the end."""

    outputs: list[Tensor]
    ready: float
    end: float


def lay(parts: Sequence[Any], view: memoryview) -> None:
    """Writes the parts' bytes one after another."""
    if len(parts) == 1:
        view[:] = parts[0]
        return
    start = 0
    for part in parts:
        end = start + len(part)
        view[start:end] = part
        start = end


def elements(parts: Sequence[Any]) -> list[bytes]:
    """Returns the elements of a BYTES input."""
    return [element for part in parts for element in part]
