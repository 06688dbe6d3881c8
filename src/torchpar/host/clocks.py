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


# sys/timex.h: adjtimex() answers that the clock is not synchronised; the offset is in nanoseconds.
_TIME_ERROR, _STA_NANO = 5, 0x2000


class _Timex(ctypes.Structure):
    """The beginning of struct timex, with room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "frequency", "most_error", "estimated_error")),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


@dataclass(frozen=True)
class TimeOfDay:
    """The state of the clock: whether a daemon keeps it right, what the kernel still corrects of it (chrony does that
    by itself), and the most by which it may be wrong, which grows while nobody asks a time server; up to 16.
    """

    is_synchronised: bool
    offset_seconds: float
    most_error_seconds: float


def read_time_of_day() -> TimeOfDay | None:
    """Reads the state of the kernel's clock (adjtimex(2)); None where the kernel does not say."""
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        return None
    unit = 1e9 if timex.status & _STA_NANO else 1e6
    return TimeOfDay(state != _TIME_ERROR, timex.offset / unit, timex.most_error / 1e6)


def clock_is_synchronised() -> bool | None:
    """Says whether a daemon keeps the kernel's clock right; None where the kernel does not say."""
    clock = read_time_of_day()
    return None if clock is None else clock.is_synchronised
