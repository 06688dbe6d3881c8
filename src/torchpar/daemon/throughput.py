"""Keeps how far the running jobs are: the latest reports of each rank, and the rates that follow from them.

Reports hold totals, so one that is lost changes nothing. A job may say what it likes of itself: it is a number in the
status and decides nothing. What is kept is bounded, whatever is sent.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchpar.contract.advice import LOADER_BOUND, Loading

# Reports of one rank: with one every two seconds and a bit, the rates are those of the last half a minute.
_KEPT = 16
_MOST_RANKS = 256  # of one unit
_MOST_UNITS = 256

# Of any number. Of rates too, which two reports within a nanosecond make of any size.
_MOST = 2.0**53

# Seconds between the reports of two ranks that run together, at the most.
_TOGETHER = 60.0


@dataclass(frozen=True)
class Report:
    """The totals of one rank at `time`, its own monotonic clock in seconds; see Meter in runtime/patches/progress.py.

    `waited` and `fetching` are in seconds too. What has a default here is what an older runtime does not say.
    """

    local_rank: int
    time: float
    steps: int
    samples: int
    batches: int
    waited: float
    fetching: float = 0.0
    fetched: int = 0
    iterators: int = 0
    workers: int = 0
    pageable: int = 0


def parse_report(data: bytes) -> Report | None:
    """A message of the runtime; None for anything else."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or message.get("version") != 1:
        return None
    values = {field.name: message.get(field.name, field.default) for field in fields(Report)}
    times: list[Any] = [values.pop(name) for name in _TIMES]
    counts: list[Any] = list(values.values())
    # bool is an int for Python. What is in range is finite too: infinity is above, and NaN compares as neither. Nothing
    # else may look at a number before that, as json reads integers of any length, which are no floats.
    if not all(type(count) is int and 0 <= count < _MOST for count in counts):
        return None
    if not all(type(value) in (int, float) and 0 <= value < _MOST for value in times):
        return None
    return Report(**values, **dict(zip(_TIMES, times, strict=True)))


_TIMES = ("time", "waited", "fetching")


class _Rank:
    """What one process has reported, oldest first, and when the last of it came."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.reports: deque[Report] = deque(maxlen=_KEPT)
        self.heard = 0.0

    def rates(self) -> dict[str, float] | None:
        """Per second, between the oldest report and the latest; None of only one."""
        first, last = self.reports[0], self.reports[-1]
        seconds = last.time - first.time
        if seconds <= 0:
            return None
        return {
            "steps": (last.steps - first.steps) / seconds,
            "samples": (last.samples - first.samples) / seconds,
        }

    def loading(self) -> Loading:
        """How the time went between the oldest report and the latest."""
        first, last = self.reports[0], self.reports[-1]
        return Loading(
            last.time - first.time,
            last.waited - first.waited,
            last.fetching - first.fetching,
            last.fetched - first.fetched,
            last.iterators - first.iterators,
            last.workers,
            bool(last.pageable),
        )


class Ledger:
    """The reports by unit and rank."""

    def __init__(self) -> None:
        self._units: dict[str, dict[int, _Rank]] = {}

    def record(self, unit: str, pid: int, report: Report, now: float) -> None:
        """Keep a report that came from a process of a unit at `now`, torchpard's own clock."""
        # The unit that was heard last is at the end.
        ranks = self._units.pop(unit, {})
        self._units[unit] = ranks
        if len(self._units) > _MOST_UNITS:
            del self._units[next(iter(self._units))]
        if report.local_rank not in ranks and len(ranks) >= _MOST_RANKS:
            return
        rank = ranks.get(report.local_rank)
        if rank is None or rank.pid != pid or not _follows(report, rank.reports[-1]):
            rank = ranks[report.local_rank] = _Rank(pid)
        rank.reports.append(report)
        rank.heard = now

    def keep(self, units: Iterable[str]) -> None:
        """Forget all other units."""
        kept = set(units)
        self._units = {unit: ranks for unit, ranks in self._units.items() if unit in kept}

    def throughput(self, unit: str, now: float) -> dict[str, Any] | None:
        """What `torchpar status` says of a unit, as JSON data; None if it has not reported twice.

        Steps are those of one rank, as all make each of them together; samples are those of all ranks; the share of
        waiting is that of the rank that waits most, since the others wait for it.
        """
        ranks = list(self._units.get(unit, {}).values())
        # A rank that is silent while others go on is of an earlier run, which had more of them.
        latest = max((rank.heard for rank in ranks), default=0.0)
        ranks = [rank for rank in ranks if rank.heard >= latest - _TOGETHER]
        rates = [rate for rank in ranks if (rate := rank.rates())]
        if not rates:
            return None
        slowest = max((rank for rank in ranks if rank.rates()), key=lambda rank: rank.loading().share)
        loading = slowest.loading()
        return {
            "steps": max(rank.reports[-1].steps for rank in ranks),
            "steps_per_second": round(min(_MOST, max(rate["steps"] for rate in rates)), 3),
            "samples_per_second": round(min(_MOST, sum(rate["samples"] for rate in rates)), 3),
            "loader_wait_share": round(loading.share, 3),
            "bound": "loader" if loading.share > LOADER_BOUND else "compute",
            "loading": {"local_rank": slowest.reports[-1].local_rank, **asdict(loading)},
            "ranks": len(rates),
            "silent_seconds": round(now - latest, 1),
        }


def _follows(report: Report, last: Report) -> bool:
    """Whether totals have grown, as they do in one process."""
    names = ("time", "steps", "samples", "batches", "waited", "fetching", "fetched", "iterators")
    return all(getattr(report, name) >= getattr(last, name) for name in names)
