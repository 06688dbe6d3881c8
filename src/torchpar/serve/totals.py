"""The counters of several processes as one: sent as JSON, added up. Imports no torch, for the first process adds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchpar.serve.statistics import Histogram, Statistics


def to_json(counters: Iterable[tuple[str, str, Statistics, int]]) -> list[list[Any]]:
    """What another process can add."""
    return [[name, version, _values(statistics), waiting] for name, version, statistics, waiting in counters]


def from_json(data: Iterable[list[Any]]) -> list[tuple[str, str, Statistics, int]]:
    """The other way round."""
    return add_up([data])


def add_up(processes: Iterable[Iterable[list[Any]]]) -> list[tuple[str, str, Statistics, int]]:
    """The sums of several processes' `to_json`, by model and version."""
    totals: dict[tuple[str, str], Statistics] = {}
    waits: dict[tuple[str, str], int] = {}
    for counters in processes:
        for name, version, values, waiting in counters:
            key = (name, version)
            _add(totals.setdefault(key, Statistics()), values)
            waits[key] = waits.get(key, 0) + waiting
    return [(name, version, total, waits[name, version]) for (name, version), total in sorted(totals.items())]


def _values(statistics: Statistics) -> dict[str, Any]:
    return {
        name: [value.counts, value.sum] if isinstance(value, Histogram) else value
        for name, value in vars(statistics).items()
    }


def _add(total: Statistics, values: dict[str, Any]) -> None:
    for name, value in values.items():
        own = getattr(total, name)
        if isinstance(own, Histogram):
            own.counts = _sums(own.counts, value[0])
            own.sum += value[1]
        elif isinstance(own, list):
            setattr(total, name, _sums(own, value))
        elif name == "by_rows":
            # JSON's keys are text.
            for rows, places in value.items():
                own[int(rows)] = _sums(own.get(int(rows), [0] * len(places)), places)
        elif isinstance(own, dict):
            for key, count in value.items():
                own[key] = own.get(key, 0) + count
        else:
            setattr(total, name, max(own, value) if name == "last" else own + value)


def _sums(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other)]
