"""Reads what a unit uses of the host from its control group, which the kernel alone writes: cgroup-v2.rst."""

from __future__ import annotations

from dataclasses import dataclass

from torchpar.host.processes import find_group


@dataclass(frozen=True)
class Use:
    """The CPU time of a unit since it started, in seconds, and its memory, in bytes; None where nobody counts it."""

    cpu_seconds: float
    memory_bytes: int | None


def read_use(control_group: str) -> Use | None:
    """Reads what the processes of a control group have used; None where it has gone, or nothing is counted."""
    group = find_group(control_group)
    if group is None:
        return None
    usage = dict(line.partition(" ")[::2] for line in _text(f"{group}/cpu.stat").splitlines()).get("usage_usec", "")
    if not usage.isdecimal():
        return None
    memory = _text(f"{group}/memory.current").strip()
    return Use(int(usage) / 1e6, int(memory) if memory.isdecimal() else None)


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(4096)
    except OSError:
        return ""
