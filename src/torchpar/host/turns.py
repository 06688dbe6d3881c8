"""Lets those who choose CPUs at the same moment take turns, without root and without a directory that all can write."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator


@contextlib.contextmanager
def in_turn(path: str, seconds: float) -> Iterator[bool]:
    """Holds a lock on a file that everybody can read; false if it was not had within so many seconds.

    Anybody can hold such a lock for ever, so nobody may depend on it. It ends with execve(2) too.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield _locked(descriptor, time.monotonic() + seconds)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _locked(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True
