"""Writes and reads how an inference service answers: a file in the service's RuntimeDirectory=.

It has two totals, the latest and those of half a minute before, so that whoever reads it once knows the rates. Whatever
runs as the service's user can write there: what is read is one of these values or nothing. Runs under any Python from
3.9 on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torchpar.contract.typed_json import ShapeError, parse_json, shape

VERSION = 1

SERVING_FILE = "serving.json"
# Is there while the service has had no request for a while, if it lends its CPUs.
IDLE_FILE = "idle"
MOST_SERVING_BYTES = 8192

_MOST_BOUNDS = 64


@dataclass(frozen=True)
class ServingTotals:
    """The totals of all processes and models at `time`, in seconds of the kernel's monotonic clock.

    `waiting` are the requests in the queue then; `counts` those that were answered by how long they took: one for each
    bound, and one for what is above the last.
    """

    time: float
    answered: int
    failed: int
    waiting: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ServingReport:
    """The totals of half a minute ago, or of the start, and the latest; `bounds` are the counts', in seconds."""

    bounds: tuple[float, ...]
    first: ServingTotals
    last: ServingTotals


@dataclass(frozen=True)
class Serving:
    """The rates of an inference service.

    `p99_seconds` is the bound below which 99 of 100 answers were; None where there were none, or it is above all.
    """

    requests_per_second: float
    errors_per_second: float
    p99_seconds: float | None
    queued_requests: int
    silent_seconds: float


@dataclass(frozen=True)
class _Version:
    version: int


def make_serving_json(report: ServingReport) -> str:
    """Makes the text of the file."""
    return json.dumps({"version": VERSION, **asdict(report)}) + "\n"


def parse_serving_json(text: bytes) -> ServingReport | None:
    """Parses the report; None for anything else, also where its totals do not grow."""
    try:
        data = parse_json(text)
        if shape(data, _Version).version != VERSION:
            return None
        report = shape(data, ServingReport)
    except ShapeError:
        return None
    return report if _is_sound(report) else None


def _is_sound(report: ServingReport) -> bool:
    first, last = report.first, report.last
    same = len(report.bounds) < _MOST_BOUNDS and {len(first.counts), len(last.counts)} == {len(report.bounds) + 1}
    grow = first.time <= last.time and first.answered <= last.answered and first.failed <= last.failed
    return same and grow and min(0, first.answered, first.failed, last.waiting, *first.counts) == 0


def rates(report: ServingReport, now: float) -> Serving | None:
    """Computes the rates of a report at `now`, of the same clock; None where too little time is between its totals."""
    first, last = report.first, report.last
    seconds = last.time - first.time
    if seconds < 1:
        return None
    return Serving(
        requests_per_second=(last.answered - first.answered) / seconds,
        errors_per_second=(last.failed - first.failed) / seconds,
        p99_seconds=_percentile(report.bounds, [b - a for a, b in zip(first.counts, last.counts)], 0.99),
        queued_requests=last.waiting,
        silent_seconds=max(0.0, now - last.time),
    )


def _percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Finds the bound below which this share of what was counted is."""
    needed, seen = share * sum(counts), 0
    for bound, inside in zip(bounds, counts):
        seen += inside
        if seen and seen >= needed:
            return bound
    return None
