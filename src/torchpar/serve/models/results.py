"""Names what a program returns as outputs: tuples within tuples, dictionaries and None among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from torchpar.serve.errors import OutputError
from torchpar.serve.models.binding import places_of


class Results:
    """Names one program's results: as described, else as the program does, else by number, as Triton does.

    described are the outputs' names in the description; own the names that the program's file has for those that are
    in no dictionary, in the order of all leaves.
    """

    def __init__(self, described: Sequence[str], own: Sequence[str] = ()) -> None:
        self._described = tuple(described)
        self._own = tuple(own)
        self._only = next(iter(self._described), None) or next(iter(self._own), "OUTPUT__0")

    def __call__(self, result: Any) -> dict[str, Any]:
        """Returns the outputs by name, but for those that are None. Raises OutputError if they are not as described."""
        if isinstance(result, torch.Tensor) and len(self._described) < 2:
            return {self._only: result}
        leaves = list(flatten(result))
        names: Sequence[str] = self.names(leaves)
        if self._described:
            names, leaves = self._pick(names, leaves)
        return {name: value for name, (_, value) in zip(names, leaves) if value is not None}

    def names(self, leaves: Sequence[tuple[str, Any]]) -> list[str]:
        """Returns the program's names of the leaves."""
        numbers = [self._own[i] if i < len(self._own) else f"OUTPUT__{i}" for i in range(len(leaves))]
        names = [name or number for (name, _), number in zip(leaves, numbers)]
        # As of a list of dictionaries, which have the same keys.
        return names if len(set(names)) == len(names) else [f"OUTPUT__{i}" for i in range(len(leaves))]

    def _pick(
        self, names: Sequence[str], leaves: list[tuple[str, Any]]
    ) -> tuple[Sequence[str], list[tuple[str, Any]]]:
        places = places_of(self._described, names)
        if places is None and not any(name for name, _ in leaves):
            # Nothing in the program names them: their order does.
            for order in (range(len(leaves)), [i for i, (_, value) in enumerate(leaves) if value is not None]):
                if len(order) == len(self._described):
                    places = list(order)
        if places is None:
            raise OutputError(
                f"described are the outputs {', '.join(self._described)}; "
                f"the model returns {', '.join(names) or 'none'}"
            )
        return self._described, [leaves[place] for place in places]


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a nesting, each with the name that the keys on the way give it, "" without any.

    A list of strings is one leaf.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flatten(part, f"{name}_{key}" if name else str(key))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key, part in zip(value._fields, value):
            yield from flatten(part, f"{name}_{key}" if name else key)
    elif isinstance(value, tuple) or (isinstance(value, list) and not is_strings(value)):
        for i, part in enumerate(value):
            yield from flatten(part, f"{name}_{i}" if name else "")
    else:
        yield name, value


def is_strings(value: Any) -> bool:
    """Says whether a list is of strings, or of lists of them."""
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, (str, bytes, list))
