"""Memory that was needed once, given back to the system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

# Work on so many bytes leaves enough behind to give it back at once.
TRIM_FROM = 64 << 20

# Less than this, in bytes and as a part of all, is not worth looking through everything for.
WORTH, SHARE = 8 << 20, 0.04

# Seconds until it is seen again whether there is memory to give back.
PAUSE = 10.0

# jemalloc's word for all of its arenas.
_ALL_ARENAS = b"arena.4096.purge"


def _releasers() -> list[Callable[[], object]]:
    """Returns the functions by which this process's allocators give memory back: glibc's own, and a preloaded one's."""
    found: list[Callable[[], object]] = []
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # other C libraries have none
        found.append(lambda: library.malloc_trim(0))
    if hasattr(library, "MallocExtension_ReleaseFreeMemory"):
        found.append(library.MallocExtension_ReleaseFreeMemory)
    if hasattr(library, "mallctl"):
        found.append(lambda: library.mallctl(_ALL_ARENAS, None, None, None, ctypes.c_size_t(0)))
    return found


_RELEASERS = _releasers()


def trim() -> None:
    """Gives free memory back. It takes some milliseconds, without Python's lock."""
    for release in _RELEASERS:
        release()


def read_resident() -> int:
    """Returns the bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Trimmer:
    """Gives memory back now and then, where the process is larger than it once was."""

    def __init__(self, resident: Callable[[], int] = read_resident, release: Callable[[], object] = trim) -> None:
        self._resident = resident
        self._release = release
        self._least: int | None = None

    def __call__(self) -> None:
        """Looks at the memory, and gives it back where it may be worth it."""
        now = self._resident()
        if self._least is None or now < self._least:
            self._least = now
        if now - self._least >= max(WORTH, SHARE * self._least):
            self._release()
            self._least = min(self._least, self._resident())
