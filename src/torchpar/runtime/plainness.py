"""Whether it changes nothing to ask a sampler or a dataset ahead of time, and in another process.

Said by who made it, and by the code of its __iter__; in doubt the answer is no.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from typing import Any


def is_torchs_own(sampler: Any) -> bool:
    """Whether a sampler (None: none was given) and those in it are torch's, whose order training cannot change."""
    if sampler is None or isinstance(sampler, (list, tuple, range)):
        return True
    inner = getattr(sampler, "sampler", None)
    return type(sampler).__module__.partition(".")[0] == "torch" and is_torchs_own(inner)


def changes_itself(dataset: Any) -> str | None:
    """Why an iterable dataset must be iterated in one process: what it remembers would be forgotten with the worker."""
    if hasattr(dataset, "__next__"):
        return "its dataset is an iterator, which would begin anew in a worker"
    if any(hasattr(type(value), "__next__") for value in getattr(dataset, "__dict__", {}).values()):
        return "its dataset holds an iterator, which would begin anew in every worker"
    methods: list[Any] = [getattr(type(dataset), "__iter__", None)]
    if not hasattr(methods[0], "__code__"):
        return "its dataset has no __iter__ in Python that could be looked at"
    for method in methods:  # grows below
        for code in codes(method.__code__):
            if any(step.opname in ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL") for step in dis.get_instructions(code)):
                return "its dataset remembers something while it is iterated, which would be lost with the worker"
            # What the methods do that it calls, it does.
            called = [getattr(type(dataset), name, None) for name in code.co_names]
            methods += [other for other in called if isinstance(other, types.FunctionType) and other not in methods]
    return None


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of all functions and comprehensions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)
