"""Reads what a serving process has answered and what it uses, besides its models' counters. Imports no torch."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping

from torchpar.serve.trim import read_resident

# What a process takes with it when it ends; all else is counted on and on.
_NOW = ("connections", "held_bytes", "resident_bytes")


def read_usage(answers: Mapping[int, int], refused: int, connections: int, held: int) -> dict[str, float]:
    """Of this process, by name; "answers 200" is one of them. Given: answers by status, and what Server counts."""
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
    """The sums over several processes."""
    totals: dict[str, float] = {}
    for usage in processes:
        for name, value in usage.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def past_usage(usage: Mapping[str, float]) -> dict[str, float]:
    """What is left to count of a process that has ended."""
    return {name: 0 if name in _NOW else value for name, value in usage.items()}
