"""A model that is in memory: what it declares, and one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchpar.serve.tensors import TensorSpec


class Program:
    """One loaded version of a model.

    platform is Triton's word where it has one. inputs and outputs are in the order of `run`'s arguments and results.
    """

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Compute. Each value is a torch.Tensor on the CPU, or a list of bytes objects for BYTES (in C order)."""
        raise NotImplementedError
