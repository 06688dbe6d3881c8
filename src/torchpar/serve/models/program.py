"""A model that is in memory: what it declares, and one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torchpar.serve.errors import ModelError
from torchpar.serve.models.description import Description
from torchpar.serve.tensors import TensorSpec


class Program(ABC):
    """One loaded version of a model.

    platform is Triton's word where it has one. inputs are in the order of `run`'s arguments, outputs name its results
    as far as anything does. max_batch is what the description says, guessed that nothing declares the inputs.
    """

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int | None
    guessed = False

    def writes(self) -> str:
        """What it writes to of its own when it runs, as far as is known by now; "" if nothing."""
        return ""

    @abstractmethod
    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Compute. Each value is a torch.Tensor on the CPU, or a list of bytes objects for BYTES (in C order)."""


def describe(path: str, found: Sequence[TensorSpec], described: Description) -> tuple[TensorSpec, ...]:
    """The inputs of a model: as described, else as found in it. Raises ModelError when the two cannot be one model."""
    if not described.inputs:
        return tuple(found)
    if found and len(described.inputs) > len(found):
        raise ModelError(f"{path}: it takes {len(found)} inputs, described are {len(described.inputs)}")
    return described.inputs
