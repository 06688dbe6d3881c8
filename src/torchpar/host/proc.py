"""Reads files below /proc that a job can make as long, and as slow, as it likes: so many bytes, until a moment.

A mapping of a file is a line with its whole path, and a process may have 65,530 of them (max_map_count); its variables
and arguments are what it has written there. No byte means anything before it is looked at, so all is bytes here.
Sources: proc(5), numa(7).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

# More than an honest process's mappings are: 65,000 of them with short paths have 6 MiB.
LIMIT = 2**23
_PIECE = 2**16
# Of one line or variable: the kernel takes no variable of more (MAX_ARG_STRLEN), and no path has more.
_LONGEST = 2**17


class TooLongError(Exception):
    """A file has more than may be read of it. Whatever was read before counts."""


class TooLateError(Exception):
    """The time is over in which all had to be read."""


class ProcReader:
    """Reads until `seconds` from now. Raises TooLateError afterwards, which ends whoever reads file after file."""

    def __init__(self, seconds: float, root: str = "/proc") -> None:
        self.root = root
        self._until = time.monotonic() + seconds

    def read(self, name: str, most: int = LIMIT) -> bytes:
        """Reads all of a file. Raises TooLongError for a longer one, TooLateError and OSError."""
        data = self.start(name, most + 1)
        if len(data) > most:
            raise TooLongError
        return data

    def start(self, name: str, most: int) -> bytes:
        """Reads the first bytes of a file, so many at most; its name is below the root, or a path. Raises as read()."""
        self.check()
        descriptor = os.open(os.path.join(self.root, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            data = bytearray()
            # The kernel makes the text while it is read, so a look at the clock in between is worth it.
            while len(data) < most and (piece := os.read(descriptor, min(_PIECE, most - len(data)))):
                data += piece
                self.check()
        finally:
            os.close(descriptor)
        return bytes(data)

    def pieces(self, name: str, end: bytes, most: int = LIMIT) -> Iterator[bytes]:
        """Yields the lines of a file, or what else ends with this byte, as many at a time as the kernel gives.

        So a file that may be long is never held as a whole. Raises as read() does, also for a line that is too long.
        """
        self.check()
        descriptor = os.open(os.path.join(self.root, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            rest, size = b"", 0
            while piece := os.read(descriptor, _PIECE):
                self.check()
                whole, found, last = piece.rpartition(end)
                if found:
                    yield rest + whole + found
                    rest = b""
                rest += last
                size += len(piece)
                if size > most or len(rest) > _LONGEST:
                    raise TooLongError
            yield rest
        finally:
            os.close(descriptor)

    def numbers(self, name: str) -> Iterator[int]:
        """Yields the entries of a folder that are numbers: processes, threads. Raises TooLateError and OSError."""
        with os.scandir(os.path.join(self.root, name)) as entries:
            for entry in entries:
                self.check()
                if entry.name.isdecimal():
                    yield int(entry.name)

    def check(self) -> None:
        """Raises TooLateError when the time is over."""
        if time.monotonic() > self._until:
            raise TooLateError
