"""Reads what a unit uses of the host from its control group, which the kernel alone writes: cgroup-v2.rst."""

from __future__ import annotations

from dataclasses import dataclass

from torchpar.host.processes import find_group

_MOST_DIGITS = 20  # of a number of 64 bits


@dataclass(frozen=True)
class Use:
    """The CPU time of a unit since it started, in seconds, and its memory, in bytes; None where nobody counts it."""

    cpu_seconds: float
    memory_bytes: int | None


@dataclass(frozen=True)
class CpuStat:
    """The CPU time of a control group since it began, in seconds, and the periods in which its quota stopped it."""

    cpu_seconds: float | None
    throttled_periods: int | None


def read_use(control_group: str) -> Use | None:
    """Reads what the processes of a control group have used; None where it has gone, or nothing is counted."""
    group = find_group(control_group)
    if group is None:
        return None
    seconds = parse_cpu_stat(_text(f"{group}/cpu.stat")).cpu_seconds
    if seconds is None:
        return None
    memory = _text(f"{group}/memory.current").strip()
    return Use(seconds, int(memory) if memory.isdecimal() else None)


def parse_cpu_stat(text: str) -> CpuStat:
    """Parses cpu.stat; what it lacks, or is no number that the kernel counts to, is None."""
    fields = dict(line.partition(" ")[::2] for line in text.splitlines())
    used, throttled = (
        int(number) if (number := fields.get(name, "")).isdecimal() and len(number) <= _MOST_DIGITS else None
        for name in ("usage_usec", "nr_throttled")
    )
    return CpuStat(None if used is None else used / 1e6, throttled)


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(4096)
    except OSError:
        return ""
