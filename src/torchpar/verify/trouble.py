"""Finds what is wrong with services together: crash loops, failures with their reason, overlaps."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
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


class Event(Protocol):
    """A failure of a unit, or a restart that follows one."""

    @property
    def unit(self) -> str:
        """The unit."""

    @property
    def is_restart(self) -> bool:
        """Says which of both it is."""

    @property
    def invocation(self) -> str:
        """The run that failed, "" where that is not told."""


class Journal(Protocol):
    """The door to the journal. It answers with nothing where it cannot be read."""

    def read_events(self, units: Collection[str], seconds: float) -> Sequence[Event]:
        """Reads the failures and restarts of units in the last so many seconds, in their order."""

    def read_last_lines(self, invocation: str) -> Sequence[str]:
        """Reads what the processes of one run wrote last, in its order."""


def add_failures(rows: Iterable[dict[str, Any]], journal: Journal, until: float = math.inf) -> None:
    """Adds to the rows of units that have failed how often they did and what they said, and says what is wrong.

    After `until`, of the monotonic clock, no more of the journal is read: the rest is told without last words.
    """
    troubled = [row for row in rows if row["failure"] or row["restarts"]]
    if not troubled:
        return
    events = journal.read_events([row["unit"] for row in troubled], LOOP_SECONDS)
    restarts = Counter(event.unit for event in events if event.is_restart)
    failed_runs = {event.unit: event.invocation for event in events if event.invocation}
    for row in troubled:
        unit = row["unit"]
        # The journal may not be there or not be readable: systemd alone knows of those since the last start by hand.
        row["restarts_in_10_minutes"] = restarts[unit] if events else None
        loops = restarts[unit] >= LOOP or (not events and row["restarts"] >= LOOP)
        if not row["failure"] and not loops and not restarts[unit]:
            continue
        run = row["invocation"] if row["failure"] else failed_runs.get(unit, "")
        why = row["failure"]["why"] if row["failure"] else "its last run failed"
        silent = says_all(why) or time.monotonic() > until
        said = None if silent else find_last_words(journal.read_last_lines(run))
        row["failure"] = {"why": why, "said": said}
        reason = ": ".join(filter(None, (why, said)))
        if loops:
            clause = f"fails again and again: {reason}; see: torchpar logs {shorten(unit)}"
            row["wrong"].append(trouble("crash-loop", clause))
        elif row["state"] in ("failed", "restarting"):
            row["wrong"].append(trouble("failure", f"has failed: {reason}; see: torchpar logs {shorten(unit)}"))


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
