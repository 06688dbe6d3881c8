"""A model that is in memory: what it declares, and one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.models.identity import Files
from torchpar.serve.protocol.elements import data_from_values
from torchpar.serve.tensors import Tensor, TensorSpec


class Program(ABC):
    """One loaded version of a model.

    platform is Triton's word where it has one. inputs are in the order of `compute`'s arguments, outputs are those that
    are declared, if any are. max_batch is what the description and the program say, guessed that nothing declares the
    inputs. example is one request that it answers, None where it names none. files are those that were read beside its
    own. seeds is what in it seeds the random numbers of its whole process, counts where it computes with the number of
    rows, as far as its graph tells; "" if nothing. steady says that it does the same for all values.
    """

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int | None
    guessed = False
    example: list[Tensor] | None = None
    files: Files = {}
    seeds = ""
    counts = ""
    steady = False

    def writes(self) -> str:
        """Names what the program keeps and writes to when it runs, as far as is known by now; "" if nothing."""
        return ""

    def tensors(self) -> list[Any]:
        """Returns the tensors that it consists of, whose memory may be exchanged for other with the same bytes."""
        return []

    def moved(self) -> None:
        """Is told that the memory of its tensors was exchanged."""
        return None

    @abstractmethod
    def compute(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Computes the outputs, by name.

        Each value is a torch.Tensor on the CPU, or a list of bytes objects for BYTES (in C order).
        """


def most_rows(inputs: Sequence[TensorSpec], described: int | None) -> int | None:
    """Returns the most rows of one batch, as described and as the program was made."""
    bounds = [spec.limits[0][1] for spec in inputs if spec.limits and spec.shape[0] == -1]
    found = [bound for bound in (described, *bounds) if bound is not None]
    return min(found) if found else None


def example_of(inputs: Sequence[TensorSpec], values: Any, where: str) -> list[Tensor]:
    """Makes the tensors of an example: for each input its values as nested lists. Raises ModelError."""
    names = [spec.name for spec in inputs]
    if not isinstance(values, dict) or set(values) != set(names):
        raise ModelError(f"{where}: example: an object with the inputs is expected: {', '.join(names)}")
    tensors = []
    for spec in inputs:
        shape, inner = [], values[spec.name]
        while isinstance(inner, list):
            shape.append(len(inner))
            inner = inner[0] if inner else None
        value = values[spec.name] if shape else [values[spec.name]]
        try:
            data = data_from_values(spec.name, spec.datatype, shape, value)
        except ServeError as error:
            raise ModelError(f"{where}: example: {error.message}") from None
        tensors.append(Tensor(spec.name, spec.datatype, tuple(shape), data))
    return fitting(inputs, tensors, where)


def fitting(inputs: Sequence[TensorSpec], example: list[Tensor], where: str) -> list[Tensor]:
    """Returns the example, if it is as the inputs are described. Raises ModelError."""
    for spec, tensor in zip(inputs, example):
        if spec.datatype != tensor.datatype or not spec.fits(tensor.shape):
            real = f"{tensor.datatype} of shape {list(tensor.shape)}"
            raise ModelError(f"{where}: example: input '{spec.name}' is {real}; {spec} is expected")
    return example
