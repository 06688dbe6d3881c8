"""Says in a sentence what a change of a unit means: "train@mlp: InteropThreads 1 → 2". A unified diff has the rest."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from torchpar.contract.job import VARIABLE
from torchpar.contract.unit_names import shorten
from torchpar.units.changes import Change
from torchpar.units.differing import MOST, fields, pairs

_WHOLE = {
    "added": "is new",
    "removed": "is no longer in the conf",
    "enabled": "starts at boot from now on",
    "disabled": "starts at boot no longer",
}


def say_change(change: Change) -> str:
    """Says what a change means for the service: the first of what differs, and how much more there is."""
    title = shorten(change.unit)
    if change.what in _WHOLE:
        return f"{title}: {_WHOLE[change.what]}"
    found = list(_differences(_settings(change.old), _settings(change.new)))
    more = f"; {len(found) - MOST} more settings" if len(found) > MOST else ""
    return f"{title}: {'; '.join(found[:MOST]) or 'comments alone differ'}{more}"


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    return (f"{what} {was} → {now}" for what, was, now in pairs(old, new))


def _settings(text: str) -> dict[str, str]:
    """Returns the settings of a drop-in: the value of each key, of each variable, and of each field of the job's."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if not equals or line.startswith(("#", ";", "[")):
            continue
        if key != "Environment":
            # An empty one only begins the list anew.
            found[key] = f"{found[key]} {value}" if value and found.get(key) else value
            continue
        name, _, content = _word(value).partition("=")
        if name == VARIABLE:
            found |= fields(content)
        elif name:
            found[name] = content
    return found


def _word(value: str) -> str:
    """Returns a variable as the job will have it, or as it stands there where it is quoted in another way."""
    try:
        return "".join(shlex.split(value)).replace("%%", "%")
    except ValueError:
        return value
