"""Reads the clocks of this host, and which boot this is."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clocks:
    """This boot, and what its clocks say in seconds: since the kernel's start, since this boot's, of the day."""

    boot_id: str
    monotonic: float
    since_boot: float
    time_of_day: float


def read_clocks() -> Clocks:
    """Reads the clocks. The kernel's goes on while a host sleeps."""
    monotonic = time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot_id = ""
    return Clocks(boot_id, monotonic, monotonic - _init_started(), time.time())


def _init_started() -> float:
    """Returns when PID 1 started, in seconds of the same clock: in a container that is later than the kernel."""
    try:
        status = Path("/proc/1/stat").read_text(encoding="utf-8", errors="replace")
        # The 22nd field; the second is a name in brackets, which may have blanks.
        return int(status.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


# sys/timex.h: adjtimex() answers that the clock is not synchronised; the size covers struct timex everywhere.
_TIME_ERROR, _TIMEX_SIZE = 5, 512


def clock_is_synchronised() -> bool | None:
    """Says whether a daemon keeps the kernel's clock right (adjtimex(2)); None where the kernel does not say."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_SIZE))
    return None if state < 0 else state != _TIME_ERROR
