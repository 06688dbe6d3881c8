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
    code = getattr(getattr(type(dataset), "__iter__", None), "__code__", None)
    if code is None:
        return "its dataset has no __iter__ in Python that could be looked at"
    for inner in _codes(code):
        if any(step.opname in ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL") for step in dis.get_instructions(inner)):
            return "its dataset remembers something while it is iterated, which would be lost with the worker"
    return None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
