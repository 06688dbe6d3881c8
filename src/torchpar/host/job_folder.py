"""Reads what services tell of themselves, in folders where their users may put anything.

Nothing there leads elsewhere or holds whoever reads: openat2(2) opens a name below the folder of all services without
following a link and without entering a file system that is mounted there (a user may mount one of their own, which
never answers). A pipe is not waited for (O_NONBLOCK), and only regular files of the service's user or root are read.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import stat
from collections.abc import Iterator

from torchpar.contract.paths import JOBS
from torchpar.contract.reports import MOST_RANK_BYTES, RANK_FILE, RankReport, parse_rank_json

_MOST_FILES = 2**14  # of a folder that are looked at
_MOST_RANKS = 1024

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# <linux/openat2.h>, which Python has not: the number is the same on every architecture of Debian's.
_OPENAT2 = 437
_NO_XDEV, _NO_SYMLINKS, _BENEATH = 0x01, 0x04, 0x08


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_LIBRARY = ctypes.CDLL(None, use_errno=True)


def read_rank_reports(unit: str, jobs: str = JOBS) -> Iterator[RankReport]:
    """What the ranks of a service say of themselves."""
    try:
        with _folder(unit, jobs) as folder:
            # Not by a list, which has the whole folder before it gives the first.
            with os.scandir(folder) as entries:
                names = [entry.name for entry in itertools.islice(entries, _MOST_FILES)]
            for name in sorted(filter(RANK_FILE.fullmatch, names))[:_MOST_RANKS]:
                with contextlib.suppress(OSError):
                    if report := parse_rank_json(_read(folder, name, MOST_RANK_BYTES)):
                        yield report
    except OSError:
        return


@contextlib.contextmanager
def _folder(unit: str, jobs: str) -> Iterator[int]:
    """The folder of a service, open. Raises OSError."""
    parent = os.open(jobs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = _open(parent, unit.removesuffix(".service"), os.O_DIRECTORY)
    finally:
        os.close(parent)
    try:
        yield folder
    finally:
        os.close(folder)


def _read(folder: int, name: str, most: int) -> bytes:
    """The first bytes of a file, of the folder's owner or root: b"" of anything else. Raises OSError."""
    descriptor = _open(folder, name)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.fstat(folder).st_uid):
            return b""
        # Its size is no promise: it may have shrunk meanwhile.
        return os.pread(descriptor, min(most, status.st_size), 0)
    finally:
        os.close(descriptor)


def _open(folder: int, name: str, flags: int = 0) -> int:
    """Open what has this name in a folder. Raises OSError."""
    how = _How(_FLAGS | flags, 0, _NO_XDEV | _NO_SYMLINKS | _BENEATH)
    path = os.fsencode(name)
    descriptor: int = _LIBRARY.syscall(
        ctypes.c_long(_OPENAT2), ctypes.c_int(folder), path, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    )
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)
    return descriptor
