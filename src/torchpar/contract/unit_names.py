"""The names of services, as people and systemd have them: "train@demo" is torchpar-train@demo.service."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torchpar.contract.errors import NoSuchServiceError, printable

_LONGEST = 100  # of a name that is compared with others
_LIKE = 0.6  # of 1, from which on a name is like another, as difflib has it


def title_of(kind: str, name: str) -> str:
    """Makes the title by which people call a service: "train@demo"."""
    return f"{kind}@{name}"


def unit_name(kind: str, name: str) -> str:
    """Makes the name of a service's unit."""
    return f"torchpar-{kind}@{name}.service"


def shorten(unit: str) -> str:
    """Makes the title of a unit's service: "train@demo" for torchpar-train@demo.service."""
    return unit.removeprefix("torchpar-").removesuffix(".service")


def is_called(kind: str, name: str, called: str) -> bool:
    """Says whether a person means this service: "demo", "train@demo", or its unit's name, with its ending or not."""
    known = (name, title_of(kind, name))
    return called in known or shorten(called) in known


def guard_of(unit: str) -> str:
    """Returns the unit that runs before each start of a service for which systemd opens files as root."""
    return f"torchpar-guard@{unit}"


def no_such_service(name: str, where: str, titles: Iterable[str]) -> NoSuchServiceError:
    """Makes the error for a name that no service has; `where` it was looked for, `titles` are those that there are.

    >>> str(no_such_service("dmeo", "in force", ["train@demo"]))
    "no service 'dmeo' in force; did you mean train@demo?"
    """
    wanted = shorten(name)[:_LONGEST].lower()
    called = wanted.rpartition("@")[2]

    def likeness(title: str) -> tuple[float, float]:
        # The name alone first: "infer@demo" may be the train@demo that there is, and not the infer@web.
        names = ((called, title.partition("@")[2].lower()), (wanted, title.lower()))
        one, other = (difflib.SequenceMatcher(None, *pair).ratio() for pair in names)
        return one, other

    near = max(titles, key=likeness, default="")
    hint = f"; did you mean {near}?" if near and called and likeness(near)[0] >= _LIKE else ""
    return NoSuchServiceError(f"no service '{printable(shorten(name), _LONGEST)}' {where}{hint}")
