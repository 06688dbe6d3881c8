"""Computes how many CPUs the services use, from what their control groups have counted in the last half a minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

_WINDOW_SECONDS = 30.0
# A rate of less time says little: the kernel accounts by ticks.
_LEAST_SECONDS = 0.4


class Use(Protocol):
    """The use of a unit: its CPU time since it started, and its memory now; None where nobody counts it."""

    @property
    def cpu_seconds(self) -> float:
        """CPU time in seconds."""

    @property
    def memory_bytes(self) -> int | None:
        """Memory in bytes."""


class Usage:
    """The use of each unit, as it was counted over the last half a minute."""

    def __init__(self, read: Callable[[str], Use | None]) -> None:
        """`read` gives what a control group has counted; None of one that is not there."""
        self._read = read
        self._counted: dict[str, deque[tuple[float, Use]]] = {}

    def look(self, groups: Mapping[str, str], now: float) -> None:
        """Reads what these units have used, by their control groups, and forgets all other units."""
        counted = {}
        for unit, group in groups.items():
            use = self._read(group)
            if use is None:
                continue
            before = self._counted.get(unit) or deque()
            if before and use.cpu_seconds < before[-1][1].cpu_seconds:
                before.clear()  # another run, whose group is as it was called before
            before.append((now, use))
            while len(before) > 2 and before[1][0] <= now - _WINDOW_SECONDS:
                before.popleft()
            counted[unit] = before
        self._counted = counted

    def cpus_used(self, unit: str, since: float | None) -> float | None:
        """Returns how many CPUs a unit uses; `since` is its start by the monotonic clock, for the first look at it."""
        counted = self._counted.get(unit)
        if not counted:
            return None
        (first_time, first), (last_time, last) = counted[0], counted[-1]
        if last_time - first_time >= _LEAST_SECONDS:
            return max(0.0, last.cpu_seconds - first.cpu_seconds) / (last_time - first_time)
        if since is not None and last_time - since >= _LEAST_SECONDS:
            return last.cpu_seconds / (last_time - since)
        return None

    def memory_bytes(self, unit: str) -> int | None:
        """Returns the memory of a unit."""
        counted = self._counted.get(unit)
        return counted[-1][1].memory_bytes if counted else None
