"""Keeps why generations were taken back: a file beside them, the last first, which decides nothing.

It is written once the older generation is in force, and a disk that cannot be written is no reason to fail then.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torchpar.contract.errors import printable
from torchpar.contract.typed_json import ShapeError, parse_json, shape
from torchpar.generations.store import Store
from torchpar.host.files import replace_text
from torchpar.host.reading import NotReadableError, Reader

NOT_CONFIRMED = "it was not confirmed in time"
# After the name of a person.
RAN = " ran torchpar rollback"
_FILE = "rollbacks.json"
_KEPT = 20
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class Rollback:
    """Generation `back` in force instead of `number`: why in words, at which time of day, in seconds."""

    number: int
    back: int
    why: str
    timestamp_seconds: float

    @property
    def person(self) -> str:
        """The name of who has run torchpar rollback; "" where nobody has."""
        name, ran, _ = self.why.rpartition(RAN)
        return name if ran else ""

    def say(self) -> str:
        """Says it in words that follow its name: "was taken back at 2026-11-30 22:10: ada ran torchpar rollback"."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.timestamp_seconds))
        return f"was taken back at {when}: {printable(self.why, 200)}"


@dataclass(frozen=True)
class _File:
    version: int
    rollbacks: tuple[Rollback, ...]


def note_rollback(store: Store, number: int, back: int, why: str) -> None:
    """Writes that a generation has been taken back now, where that can be written. Callers hold the store's lock."""
    known = Rollback(number, back, why, time.time()), *read_rollbacks(store)
    data = asdict(_File(1, known[:_KEPT]))
    with contextlib.suppress(OSError):
        replace_text(store.directory / _FILE, json.dumps(data) + "\n")


def read_rollbacks(store: Store) -> tuple[Rollback, ...]:
    """Reads them, the latest first; none where they cannot be read."""
    try:
        file = shape(parse_json(Reader().bytes(store.directory / _FILE, _MOST_BYTES)), _File)
        # Times that no calendar has would not be words.
        for rollback in file.rollbacks:
            rollback.say()
    except (OSError, OverflowError, ValueError, NotReadableError, ShapeError):
        return ()
    return file.rollbacks if file.version == 1 else ()


def find_rollback(rollbacks: Sequence[Rollback], number: int) -> Rollback | None:
    """Finds the last time that a generation was taken back, unless it came back in force after it."""
    last = next((each for each in rollbacks if number in (each.number, each.back)), None)
    return last if last and last.number == number else None
