"""A lock that only one user can take."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from torchpar.host.files import own


@contextlib.contextmanager
def locked_file(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock on a file of this user's own; false when another process has it and this is not to wait.

    Whoever may open a file or a directory, be it for reading, may lock it, so no other may open this one. Raises
    OSError.
    """
    # An empty folder in its place is taken away. Whatever else is there may be somebody's, and is an error.
    with contextlib.suppress(OSError):
        os.rmdir(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        own(descriptor, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Says whether a process holds such a lock. It needs no right to take it, and never keeps others from it."""
    try:
        number = path.lstat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    # "1: FLOCK  ADVISORY  WRITE 123 00:1f:4567 0 EOF"; the device is that of the file system below, so it is left out.
    fields = (line.split() for line in locks.splitlines())
    return any("FLOCK" in line and f":{number} " in f"{' '.join(line)} " for line in fields)
