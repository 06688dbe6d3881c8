"""Puts a function in the place of one of torch's, and leaves it the look of that one.

What a script owns, inspects, pickles or compiles is then the same with torchpar and without: signature, source,
documentation, names, and the file by which torch.compile knows torch's own code.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any


def replace_method(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Puts what `make` makes of a function of a class or module in its place.

    The new function takes parameters of the same names, or anything, and uses only names of its own and builtins.
    """
    original = getattr(owner, name)
    setattr(owner, name, _like(original, make(original)))


def _like(original: Any, new: types.FunctionType) -> types.FunctionType:
    """Copies `new` so that inspect, pickle and tracebacks take it for `original`."""
    there = original.__code__
    names = {"co_name": there.co_name, "co_filename": there.co_filename, "co_firstlineno": there.co_firstlineno}
    if hasattr(there, "co_qualname"):  # Python 3.11
        names["co_qualname"] = there.co_qualname
    code = new.__code__.replace(**names)
    # With the original's own globals, by which typing.get_type_hints() finds what annotations mean.
    function = types.FunctionType(code, original.__globals__, original.__name__, None, new.__closure__)
    function.__dict__.update(original.__dict__)
    function.__qualname__, function.__module__ = original.__qualname__, original.__module__
    function.__doc__, function.__annotations__ = original.__doc__, original.__annotations__
    if code.co_varnames[: code.co_argcount] != there.co_varnames[: there.co_argcount]:
        # It takes anything, so what it stands for must be said.
        function.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return function


class StandIn:
    """A callable that is no function, in the place of one: for whoever asks what it is, it is that one."""

    def __init__(self, original: Any, call: Callable[..., Any]) -> None:
        """`call` is what is called instead."""
        self._original = original
        self._call = call
        self.__module__, self.__doc__ = original.__module__, original.__doc__

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Does as `call` does."""
        return self._call(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        """Gives the other attributes of the original."""
        return getattr(self._original, name)

    def __repr__(self) -> str:
        return repr(self._original)

    def __reduce__(self) -> Any:
        """Is found again by its name, wherever there is a torch."""
        return str(self._original.__qualname__)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The original's class, for isinstance() and inspect."""
        return type(self._original)
