"""Finds what is wrong with services together: crash loops, failures with their reason, overlaps."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.messages import trouble
from torchpar.contract.unit_names import shorten
from torchpar.verify.failure import find_last_words, says_all

LOOP_SECONDS = 600.0
# From so many restarts in that time on it is a loop. One alone may be the cure, as of a malloc that did not fit.
LOOP = 2
_MOST_TOLD = 4  # of those that run on the same CPUs


class Journal(Protocol):
    """The door to the journal."""

    def count_restarts(self, units: Collection[str], seconds: float) -> Mapping[str, int] | None:
        """Counts how often systemd has started units again in the last so many seconds; None where nobody knows."""

    def read_last_lines(self, unit: str, since: float | None, until: float | None) -> Sequence[str]:
        """Reads what the processes of a unit wrote last between two times, in seconds since the epoch, in its order."""


def add_failures(rows: Iterable[dict[str, Any]], journal: Journal, until: float = math.inf) -> None:
    """Adds to the rows of units that have failed how often they did and what they said, and says what is wrong.

    After `until`, of the monotonic clock, no more of the journal is read: the rest is told without last words.
    """
    troubled = [row for row in rows if row["failure"] or row["restarts"]]
    if not troubled:
        return
    counted = journal.count_restarts([row["unit"] for row in troubled], LOOP_SECONDS)
    for row in troubled:
        unit = row["unit"]
        row["restarts_in_10_minutes"] = None if counted is None else counted.get(unit, 0)
        restarts = _recent_restarts(row)
        loops = restarts >= LOOP
        if not row["failure"] and not restarts:
            continue
        why = row["failure"]["why"] if row["failure"] else "its last run failed"
        # Of the run that failed last: the latest, or one before that which runs now.
        began = row["run_began_unix_seconds"]
        span = (began, None) if row["failure"] else (None, began)
        silent = says_all(why) or time.monotonic() > until
        said = None if silent else find_last_words(journal.read_last_lines(unit, *span))
        row["failure"] = {"why": why, "said": said}
        reason = ": ".join(filter(None, (why, said)))
        if loops:
            clause = f"fails again and again: {reason}; see: torchpar logs {shorten(unit)}"
            row["wrong"].append(trouble("crash-loop", clause))
        elif row["state"] in ("failed", "restarting"):
            row["wrong"].append(trouble("failure", f"has failed: {reason}; see: torchpar logs {shorten(unit)}"))


def _recent_restarts(row: Mapping[str, Any]) -> int:
    """Returns the restarts that tell of now.

    Without the journal systemd alone knows, of those since the last start by hand, which may be long ago: they count
    while the unit waits to be started once more.
    """
    if row["restarts_in_10_minutes"] is not None:
        return int(row["restarts_in_10_minutes"])
    return int(row["restarts"]) if row["state"] == "restarting" else 0


def add_overlaps(rows: Sequence[dict[str, Any]]) -> None:
    """Says of services that run on the same CPUs that they do. Two that both ask for it by CPUs=shared are left out."""
    running = [row for row in rows if row["main_pid"] and row["running_cpus"]]
    sets = [CpuSet.parse(row["running_cpus"]) for row in running]
    beside: dict[str, list[str]] = {}
    common: dict[str, CpuSet] = {}
    for (one, first), (other, second) in itertools.combinations(zip(running, sets, strict=True), 2):
        both = first & second
        if both and not (one["shared"] and other["shared"]):
            for row, mate in ((one, other), (other, one)):
                beside.setdefault(row["unit"], []).append(shorten(mate["unit"]))
                common[row["unit"]] = common.get(row["unit"], CpuSet()) | both
    for row in running:
        if titles := beside.get(row["unit"]):
            more = f" and {len(titles) - _MOST_TOLD} more" if len(titles) > _MOST_TOLD else ""
            clause = f"shares CPUs {common[row['unit']]} with {', '.join(titles[:_MOST_TOLD])}{more}: {_cure(row)}"
            row["wrong"].append(trouble("overlap", clause))


def _cure(row: Mapping[str, Any]) -> str:
    if row["shared"]:
        return "CPUs=shared found none that nobody else runs on; all are slower, and CPUs= of its own for it mends that"
    return "all are slower; stop the others, or write Enabled=yes or CPUs= of its own for each into the conf"
