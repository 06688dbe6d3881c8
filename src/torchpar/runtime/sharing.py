"""What a forked loader worker could not share with the process that it was forked from.

A file's position is one for both processes, a connection's bytes go to either, a thread is in one of them only, and a
generator of random numbers would begin every epoch where the process's own stands. Looks at what is reachable from a
dataset, without reading or pickling it, and not at every element of long lists. Of what its classes hold, and of the
global names that their methods use, only these values themselves are looked at: behind them may be the whole script.
"""

from __future__ import annotations

import io
import random
import socket
import threading
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torchpar.runtime import accelerator
from torchpar.runtime.plainness import codes

# As much as takes a few milliseconds; of a list's elements, which are mostly alike, the first.
_MOST_VALUES = 5000
_MOST_ELEMENTS = 64

# Packages whose objects are written in C and hold a file or a connection that does not survive a fork.
_HANDLES = {
    "sqlite3", "h5py", "tables", "netCDF4", "lmdb", "psycopg2", "psycopg", "MySQLdb", "pyodbc", "zmq", "grpc",
    "av", "cv2", "decord",
}  # fmt: skip
# Their classes hold nothing of a script's.
_NOT_THE_SCRIPTS = {"builtins", "collections", "numpy", "torch", "typing"}
_PLAIN = (str, bytes, bytearray, int, float, complex, bool, type(None), type, types.ModuleType, range)


def not_shareable(torch: Any, **roots: Any) -> str | None:
    """What is reachable from the named values that a forked process cannot use: "dataset.file, an open file".

    None: nothing was found.
    """
    queue: list[tuple[str, Any]] = list(roots.items())
    seen: set[int] = set()
    for name, value in queue:  # grows below
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        looked_at = [(name, value)]
        if isinstance(value, types.FunctionType):
            looked_at += _known_to([value])
        elif id(type(value)) not in seen:
            seen.add(id(type(value)))
            looked_at += _of_class(name, type(value))
        for owner, held in looked_at:
            what = _what(torch, held)
            if what:
                return f"{owner}, {what}"
        room = _MOST_VALUES - len(queue)
        queue += [part for part, _ in zip(_parts(name, value), range(room))]  # noqa: B905 - strict= is of 3.10
    return None


def _what(torch: Any, value: Any) -> str | None:
    if accelerator.holds(torch, value):
        return f"a tensor on {value.device.type}"
    if isinstance(value, socket.socket):
        return "a socket"
    if isinstance(value, io.IOBase):
        return "an open file" if _has_descriptor(value) else None
    if isinstance(value, threading.Thread):
        return "a thread"
    if isinstance(value, (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType)):
        return "a generator"
    kind = type(value)
    if isinstance(value, (random.Random, torch.Generator)) or kind.__module__.startswith("numpy.random"):
        return "random numbers of its own"
    if kind.__module__.partition(".")[0] in _HANDLES:
        return f"a {kind.__module__}.{kind.__qualname__}"
    return None


def _has_descriptor(file: io.IOBase) -> bool:
    try:
        # The standard streams are everybody's.
        return not file.closed and file.fileno() > 2
    except (OSError, ValueError):
        return False


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, with names for people. No code of the value's own class is run."""
    if isinstance(value, dict):
        yield from ((f"{name}[{key!r:.20}]", part) for key, part in _first(dict.items(value)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"{name}[...]", part) for part in _first(value))
    elif isinstance(value, types.FunctionType):
        for cell, variable in zip(value.__closure__ or (), value.__code__.co_freevars):  # noqa: B905
            try:
                yield variable, cell.cell_contents
            except ValueError:
                continue  # not set yet
    elif isinstance(value, types.MethodType):
        yield name, value.__self__
    else:
        yield from _slots(name, value)
        try:
            attributes = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return
        if isinstance(attributes, dict):
            yield from ((f"{name}.{key}", part) for key, part in list(attributes.items()))


def _slots(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is not in the __dict__ of a value: its __slots__, and what C holds of a functools.partial."""
    for base in type(value).__mro__:
        for key, slot in vars(base).items():
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    yield f"{name}.{key}", slot.__get__(value)
                except AttributeError:
                    continue  # not set yet


def _of_class(name: str, kind: type) -> Iterator[tuple[str, Any]]:
    """What a class and those it is made from hold, and what their methods know."""
    held = [
        (f"{name}.{key}", value)
        for base in kind.__mro__
        if base.__module__.partition(".")[0] not in _NOT_THE_SCRIPTS
        for key, value in list(vars(base).items())
    ]
    yield from held
    yield from _known_to([value for _, value in held if isinstance(value, types.FunctionType)])


def _known_to(functions: list[types.FunctionType]) -> Iterator[tuple[str, Any]]:
    """The global values that functions name, and those of the functions of the same module that they call."""
    for function in functions:  # grows below
        known = function.__globals__
        for name in {name for code in codes(function.__code__) for name in code.co_names}:
            value = known.get(name)
            yield name, value
            if isinstance(value, types.FunctionType) and value.__globals__ is known and value not in functions:
                functions.append(value)


def _first(values: Iterable[Any]) -> Iterator[Any]:
    for _, value in zip(range(_MOST_ELEMENTS), values):  # noqa: B905
        yield value
