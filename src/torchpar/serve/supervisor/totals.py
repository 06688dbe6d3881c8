"""The counters of several processes as one: sent as JSON, added up. Imports no torch, for the first process adds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Callable

from torchpar.serve.engine.statistics import Histogram, Statistics


def to_json(counters: Iterable[tuple[str, str, Statistics, int]]) -> list[list[Any]]:
    """Makes JSON data of counters, which another process can add."""
    return [[name, version, _values(statistics), waiting] for name, version, statistics, waiting in counters]


def from_json(data: Iterable[list[Any]]) -> list[tuple[str, str, Statistics, int]]:
    """Makes counters of JSON data again."""
    return add_up([data])


def add_up(processes: Iterable[Iterable[list[Any]]]) -> list[tuple[str, str, Statistics, int]]:
    """Returns the sums of several processes' `to_json`, by model and version."""
    totals: dict[tuple[str, str], Statistics] = {}
    waits: dict[tuple[str, str], int] = {}
    for counters in processes:
        for name, version, values, waiting in counters:
            key = (name, version)
            _add(totals.setdefault(key, Statistics()), values)
            waits[key] = waits.get(key, 0) + waiting
    return [(name, version, total, waits[name, version]) for (name, version), total in sorted(totals.items())]


class Sender:
    """Sends what `to_json` returns, one model a message: all models of a service are too much for one.

    Where the other end's buffer is full, the next call goes on with the rest.
    """

    def __init__(self, send: Callable[[list[list[Any]], list[list[str]]], bool]) -> None:
        """send: given counters, and the names and versions of all that there are, tells whether it could."""
        self._send = send
        self._next = 0

    def __call__(self, data: Sequence[list[Any]]) -> None:
        """Sends it all, or as much as goes."""
        names = [entry[:2] for entry in data]
        for _ in data:
            self._next %= len(data)
            if not self._send([data[self._next]], names):
                return
            self._next += 1


def merge(have: Iterable[Any], news: Iterable[Any], names: Iterable[Sequence[str]]) -> list[Any]:
    """Counters with those of a message in place of the former; what is not among the names any more is left out."""
    found = {(entry[0], entry[1]): entry for entries in (have, news) for entry in entries}
    return [found[name, version] for name, version in names if (name, version) in found]


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
            for rows, counted in value.items():
                own[int(rows)] = _sums(own.get(int(rows), [0] * len(counted)), counted)
        elif isinstance(own, dict):
            for key, count in value.items():
                own[key] = own.get(key, 0) + count
        else:
            setattr(total, name, max(own, value) if name == "last" else own + value)


def _sums(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other)]
