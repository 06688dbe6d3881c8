"""Binds inputs to arguments: by name where the program has names, or by number, as Triton does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchpar.serve.errors import ModelError
from torchpar.serve.tensors import TensorSpec

# INPUT__0 and OUTPUT__1; Triton's libtorch backend takes any word before the number.
_NUMBERED = re.compile(r"\w*?__(\d+)")


@dataclass(frozen=True)
class Argument:
    """One argument of a program that a tensor can be bound to.

    required: it has no default. known is what the program says of the tensor, None where it says nothing.
    """

    name: str
    required: bool = True
    known: TensorSpec | None = None


@dataclass(frozen=True)
class Bound:
    """The inputs in the order of the program's arguments, and the number of each among these."""

    inputs: tuple[TensorSpec, ...]
    places: tuple[int, ...]


def places_of(described: Sequence[str], names: Sequence[str], counted: bool = True) -> list[int] | None:
    """Returns the place among `names` of each described input; None where they are not the same things.

    One and one fit, whatever they are called. counted: the names have an order, so that a number stands for one.
    """
    if set(described) <= set(names):
        return [names.index(name) for name in described]
    numbers = [int(found[1]) for found in map(_NUMBERED.fullmatch, described) if found and counted]
    if numbers and len(set(numbers)) == len(described) and max(numbers) < len(names):
        return numbers
    return [0] if len(described) == len(names) == 1 else None


def is_numbered(name: str) -> bool:
    """Says whether a name counts, as Triton's do: INPUT__0, OUTPUT__1."""
    return bool(_NUMBERED.fullmatch(name))


def bind(
    path: str, arguments: Sequence[Argument], described: Sequence[TensorSpec], counted: bool = True
) -> Bound:
    """Binds the described inputs, else those that the program knows. Raises ModelError.

    counted: see places_of.
    """
    names = [argument.name for argument in arguments]
    if not described:
        needed = [(i, argument) for i, argument in enumerate(arguments) if argument.known]
        return Bound(tuple(a.known for _, a in needed if a.known), tuple(i for i, _ in needed))
    listed = [spec.name for spec in described]
    places = places_of(listed, names, counted)
    missing = [a.name for i, a in enumerate(arguments) if a.required and i not in (places or ())]
    if places is None or missing:
        raise ModelError(
            f"{path}: described are the inputs {', '.join(listed)}; the program takes {', '.join(names) or 'none'}"
            + (f", and {', '.join(missing)} must be there" if places is not None else "")
            + ": call them as the program does"
            + (", or by number: INPUT__0, INPUT__1, ..." if counted else "")
        )
    pairs = sorted(zip(places, described), key=lambda pair: pair[0])
    inputs = tuple(_narrow(path, spec, arguments[place].known) for place, spec in pairs)
    return Bound(inputs, tuple(place for place, _ in pairs))


def _narrow(path: str, described: TensorSpec, known: TensorSpec | None) -> TensorSpec:
    """Narrows a described input to what the program was made for. Raises ModelError where they cannot be one tensor."""
    if known is None:
        return described
    pairs = list(zip(described.shape, known.shape))
    if (
        described.datatype != known.datatype
        or len(described.shape) != len(known.shape)
        or any(-1 not in (a, b) and a != b for a, b in pairs)
        or any(a != -1 and not _within(a, limit) for a, limit in zip(described.shape, known.limits))
    ):
        raise ModelError(f"{path}: input '{described.name}' is described as {described}; the program takes {known}")
    return replace(described, shape=tuple(b if a == -1 else a for a, b in pairs), limits=known.limits)


def _within(size: int, limit: tuple[int, int | None]) -> bool:
    return limit[0] <= size and (limit[1] is None or size <= limit[1])
