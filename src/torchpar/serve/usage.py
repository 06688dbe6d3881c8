"""Reads what a serving process has answered and what it uses, besides its models' counters. Imports no torch."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping

from torchpar.serve.trim import read_resident

# What a process takes with it when it ends; all else is counted on and on.
_NOW = ("connections", "held_bytes", "resident_bytes")


def read_usage(answers: Mapping[int, int], refused: int, connections: int, held: int) -> dict[str, float]:
    """Returns the answers and the resources of this process, by name, such as "answers 200".

    answers: counts by HTTP status. refused, connections and held (bytes) are Server's.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        **{f"answers {status}": count for status, count in sorted(answers.items())},
        "refused": refused,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "connections": connections,
        "held_bytes": held,
        "resident_bytes": read_resident(),
    }


def add_usage(processes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns the sums over several processes."""
    totals: dict[str, float] = {}
    for usage in processes:
        for name, value in usage.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def past_usage(usage: Mapping[str, float]) -> dict[str, float]:
    """Returns the numbers that still count when a process has ended."""
    return {name: 0 if name in _NOW else value for name, value in usage.items()}
