"""The counters that the kernel and systemd keep of a unit: values, no reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class UnitCounters:
    """The counters of one unit; None where there is no such controller, or the unit does not run.

    `waited_seconds` are how long some of its processes have waited, by resource ("cpu", "memory", "io").
    """

    state: str
    restarts: int
    cpu_seconds: float | None = None
    throttled_periods: int | None = None
    memory_bytes: int | None = None
    waited_seconds: Mapping[str, float] = field(default_factory=dict)
