"""Reads what one process of a service uses, from what the kernel tells everybody of each process: proc(5)."""

from __future__ import annotations

import os
from dataclasses import dataclass

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Of a file of the kernel's, in which a process's own name has 15 bytes, and a set of CPUs has a word for each 32.
_MOST = 2**16


@dataclass(frozen=True)
class RankUse:
    """The CPU time of a process since it began, in seconds, its memory (RSS) in bytes, and the CPUs that it may use."""

    cpu_seconds: float
    memory_bytes: int
    cpus: str


def read_rank_use(pid: int, unit: str, proc: str = "/proc") -> RankUse | None:
    """Reads the use of a process; None where it is gone or is none of the unit's, whatever has told its number."""
    try:
        group = _text(f"{proc}/{pid}/cgroup")
        if not any(f"/{unit}/" in f"{line.rpartition(':')[2]}/" for line in group.splitlines()):
            return None
        # After the name in brackets, which may hold blanks: from the third field on.
        fields = _text(f"{proc}/{pid}/stat").rpartition(")")[2].split()
        status = dict(line.partition(":\t")[::2] for line in _text(f"{proc}/{pid}/status").splitlines())
        cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS
        return RankUse(cpu_seconds, int(fields[21]) * _PAGE, status.get("Cpus_allowed_list", "").strip())
    except (OSError, ValueError, IndexError):
        return None


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_MOST)
