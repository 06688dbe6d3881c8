"""Computes how fast the jobs are from what their ranks have told, and keeps the last of each that can be said.

A job may say what it likes of itself: it is a number in the status and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchpar.contract.advice import LOADER_BOUND, Loading
from torchpar.contract.reports import RankProgress

# Of rates, which two reports within a nanosecond make of any size; the commands take no larger number.
_MOST = 2.0**53

# Seconds between the latest totals of two ranks that run together, at the most.
_TOGETHER = 60.0

# A job that runs may have been planned with more ranks than it would have now.
_LEAST_RANKS = 16


@dataclass(frozen=True)
class RankThroughput:
    """The speed of one rank: its process, its optimizer steps per second, and its share of waiting for data."""

    local_rank: int
    pid: int
    steps_per_second: float
    loader_wait_share: float
    latest: float


@dataclass(frozen=True)
class Throughput:
    """The speed of a job. `loading` is that of the rank that waits most, `local_rank`; `latest` the time of the latest
    totals, by the kernel's monotonic clock.
    """

    ranks: int
    steps: int
    steps_per_second: float
    samples_per_second: float
    local_rank: int
    loading: Loading
    latest: float
    by_rank: tuple[RankThroughput, ...] = ()

    @property
    def bound(self) -> str:
        """Says what holds the job back."""
        return "loader" if self.loading.share > LOADER_BOUND else "compute"

    def as_json(self, now: float) -> dict[str, Any]:
        """Makes what `torchpar status` says of it at this time."""
        return {
            "steps": self.steps,
            "steps_per_second": round(self.steps_per_second, 3),
            "samples_per_second": round(self.samples_per_second, 3),
            "loader_wait_share": round(self.loading.share, 3),
            "bound": self.bound,
            "loading": {"local_rank": self.local_rank, **asdict(self.loading)},
            "ranks": self.ranks,
            "silent_seconds": round(max(0.0, now - self.latest), 1),
            "by_rank": [
                {
                    "local_rank": rank.local_rank,
                    "pid": rank.pid,
                    "steps_per_second": round(rank.steps_per_second, 3),
                    "loader_wait_share": round(rank.loader_wait_share, 3),
                    "silent_seconds": round(max(0.0, now - rank.latest), 1),
                }
                for rank in self.by_rank
            ],
        }


def make_throughput(ranks: Iterable[RankProgress]) -> Throughput | None:
    """Computes the throughput of a job; None where no rank has told twice.

    Steps are those of one rank, as all make each of them together; samples are those of all ranks; the loading is that
    of the rank that waits most, since the others wait for it.
    """
    ranks = list(ranks)
    # A rank that is silent while others go on is of an earlier run, which had more of them.
    latest = max((rank.last.time for rank in ranks), default=0.0)
    ranks = [rank for rank in ranks if rank.last.time >= latest - _TOGETHER]
    twice = [rank for rank in ranks if rank.last.time > rank.first.time]
    if not twice:
        return None
    slowest = max(twice, key=lambda rank: _loading(rank).share)
    return Throughput(
        ranks=len(twice),
        steps=max(rank.last.steps for rank in ranks),
        steps_per_second=min(_MOST, max(_per_second(rank, rank.last.steps - rank.first.steps) for rank in twice)),
        samples_per_second=min(_MOST, sum(_per_second(rank, rank.last.samples - rank.first.samples) for rank in twice)),
        local_rank=slowest.last.local_rank,
        loading=_loading(slowest),
        latest=latest,
        by_rank=tuple(_of_rank(rank) for rank in twice),
    )


def _of_rank(rank: RankProgress) -> RankThroughput:
    steps = min(_MOST, _per_second(rank, rank.last.steps - rank.first.steps))
    return RankThroughput(rank.last.local_rank, rank.last.pid, steps, _loading(rank).share, rank.last.time)


def _per_second(rank: RankProgress, count: int) -> float:
    return count / (rank.last.time - rank.first.time)


def _loading(rank: RankProgress) -> Loading:
    """Says how the time went between the oldest totals and the latest."""
    first, last = rank.first, rank.last
    return Loading(
        last.time - first.time,
        last.waited - first.waited,
        last.fetching - first.fetching,
        last.fetched - first.fetched,
        last.iterators - first.iterators,
        last.workers,
        last.pageable,
    )


class Ledger:
    """The throughput of each unit as it was last read, and the last that was known of it."""

    def __init__(self, read: Callable[[str, int], Iterable[RankProgress]]) -> None:
        """`read` gives what so many ranks of a unit have told; nothing of one that does not run."""
        self._read = read
        self._now: dict[str, Throughput | None] = {}
        self._last: dict[str, Throughput | None] = {}

    def look(self, units: Mapping[str, int]) -> None:
        """Reads what these units have told, each planned with so many ranks, and forgets all other units."""
        self._now = {
            unit: make_throughput(self._read(unit, max(ranks, _LEAST_RANKS))) for unit, ranks in units.items()
        }
        self._last = {unit: now or self._last.get(unit) for unit, now in self._now.items()}

    def now(self, unit: str) -> Throughput | None:
        """Returns the speed of a unit."""
        return self._now.get(unit)

    def last(self, unit: str) -> Throughput | None:
        """Returns the speed of a unit, or that of its last run."""
        return self._last.get(unit)
