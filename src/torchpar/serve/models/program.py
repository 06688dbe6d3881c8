"""A model that is in memory: what it declares, and one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torchpar.serve.tensors import TensorSpec


class Program(ABC):
    """One loaded version of a model.

    platform is Triton's word where it has one. inputs are in the order of `run`'s arguments, outputs are those that
    are declared, if any are. max_batch is what the description and the program say, guessed that nothing declares the
    inputs.
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
    def run(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Compute; the outputs by name.

        Each value is a torch.Tensor on the CPU, or a list of bytes objects for BYTES (in C order).
        """


def most_rows(inputs: Sequence[TensorSpec], described: int | None) -> int | None:
    """The rows of one batch, at the most, as described and as the program was made."""
    bounds = [spec.limits[0][1] for spec in inputs if spec.limits and spec.shape[0] == -1]
    found = [bound for bound in (described, *bounds) if bound is not None]
    return min(found) if found else None
