"""Tells how much one serving process has to do, in a page of memory that the first process reads.

A message for each change would cost more than a request.

Both numbers are whole words of a page of their own, which a processor writes at once.
"""

from __future__ import annotations

import mmap
import os

_TAKEN, _LOAD = 0, 1


class Gauge:
    """Reads and writes the page, on either side. `fd` is its descriptor, to pass on."""

    def __init__(self, fd: int) -> None:
        """fd: a descriptor of the page, which `close` closes."""
        self.fd = fd
        self._page = mmap.mmap(fd, mmap.PAGESIZE)
        self._words = memoryview(self._page).cast("Q")

    @property
    def taken(self) -> int:
        """Counts the connections that were passed to the process and that it has taken."""
        return self._words[_TAKEN]

    @property
    def load(self) -> int:
        """Counts the connections that it has; one with several calls under way counts for as many."""
        return self._words[_LOAD]

    def take(self) -> None:
        """Counts one more connection as taken."""
        self._words[_TAKEN] += 1

    def set_load(self, load: int) -> None:
        """Tells how much there is to do now."""
        self._words[_LOAD] = load

    def close(self) -> None:
        """Gives it up, and the descriptor."""
        self._words.release()
        self._page.close()
        os.close(self.fd)


def make_gauge() -> Gauge:
    """Makes a page that says nothing yet."""
    fd = os.memfd_create("torchpar-load", os.MFD_CLOEXEC)
    os.ftruncate(fd, mmap.PAGESIZE)
    return Gauge(fd)
