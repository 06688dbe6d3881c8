"""Reads how much room a file system has, and whether a file is there; a server that does not answer holds nobody."""

from __future__ import annotations

import os

from torchpar.facts.disk import Disk
from torchpar.host.reading import NotReadableError, Reader

# Of a disk that works, the kernel answers at once.
_SECONDS = 0.5


class Disks:
    """Reads file systems; after one has not answered, no further question is asked while it does not."""

    def __init__(self) -> None:
        self._reader = Reader(_SECONDS)

    def read(self, path: str) -> Disk | None:
        """Reads the file system that a path is on, or will be once it is made; None where that cannot be known."""
        try:
            found = self._reader.do(lambda: _nearest(path))
        except (OSError, NotReadableError):
            return None
        size = found.f_frsize
        return Disk(
            found.f_blocks * size,
            found.f_bavail * size,
            found.f_files or None,
            found.f_favail,
            bool(found.f_flag & os.ST_RDONLY),
        )

    def is_missing(self, path: str) -> bool | None:
        """Says whether a file is not there; None where that cannot be known."""
        try:
            self._reader.do(lambda: os.stat(path))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, NotReadableError):
            return None
        return False


def _nearest(path: str) -> os.statvfs_result:
    """Asks for the file system of a path, or of the folder above it that is there. Raises OSError."""
    while True:
        try:
            return os.statvfs(path)
        except (FileNotFoundError, NotADirectoryError):
            if path in ("/", ""):
                raise
            path = os.path.dirname(path.rstrip("/"))
