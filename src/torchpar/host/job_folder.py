"""Reads what services tell of themselves, in folders where their users may put anything.

Nothing there leads elsewhere or holds whoever reads. What has a name is first held without being opened (O_PATH), which
asks no file system: no link is followed, and what is mounted there is let go, as a user may mount what never answers.
Only then it is looked at, and only regular files of the service's user or root are read. openat2(2) would do it all in
one call, but RestrictSUIDSGID= takes that from torchpard.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator

from torchpar.contract.paths import JOBS
from torchpar.contract.reports import (
    MOST_RANK_BYTES,
    PROGRESS_FILE,
    RANK_FILE,
    RankProgress,
    RankReport,
    parse_progress,
    parse_rank_json,
    progress_bytes,
)
from torchpar.contract.serving import IDLE_FILE, MOST_SERVING_BYTES, SERVING_FILE, ServingReport, parse_serving_json

_MOST_FILES = 2**14  # of a folder that are looked at
_MOST_RANKS = 1024

_HELD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def read_progress(unit: str, ranks: int, jobs: str = JOBS) -> tuple[RankProgress, ...]:
    """Reads how far so many ranks of a service are; nothing where they have told nothing."""
    try:
        with held_folder(unit, jobs) as folder:
            return parse_progress(_read(folder, PROGRESS_FILE, progress_bytes(ranks)))
    except OSError:
        return ()


def read_serving(unit: str, jobs: str = JOBS) -> ServingReport | None:
    """Reads how an inference service answers; None where it has told nothing."""
    try:
        with held_folder(unit, jobs) as folder:
            return parse_serving_json(_read(folder, SERVING_FILE, MOST_SERVING_BYTES))
    except OSError:
        return None


def is_idle(unit: str, jobs: str = JOBS) -> bool:
    """Says whether an inference service says that it has had no request for a while."""
    try:
        with held_mark(unit, jobs):
            return True
    except OSError:
        return False


def read_rank_reports(unit: str, jobs: str = JOBS) -> Iterator[RankReport]:
    """Reads what the ranks of a service say of themselves."""
    try:
        with held_folder(unit, jobs) as folder:
            # Not by a list, which has the whole folder before it gives the first.
            with _opened(f"/proc/self/fd/{folder}") as file, os.scandir(file) as entries:
                names = [entry.name for entry in itertools.islice(entries, _MOST_FILES)]
            for name in sorted(filter(RANK_FILE.fullmatch, names))[:_MOST_RANKS]:
                with contextlib.suppress(OSError):
                    if report := parse_rank_json(_read(folder, name, MOST_RANK_BYTES)):
                        yield report
    except OSError:
        return


def read_file(name: str, folders: str, file: str, most: int) -> bytes:
    """Reads the first bytes of a file in a job's folder, of the folder's owner or root: b"" of anything else.

    Raises OSError.
    """
    with held_folder(name, folders) as folder:
        return _read(folder, file, most)


@contextlib.contextmanager
def held_mark(unit: str, jobs: str = JOBS) -> Iterator[int]:
    """Holds the mark by which an inference service says that it is idle, as a path alone. Raises OSError."""
    with held_folder(unit, jobs) as folder, _held(folder, IDLE_FILE) as mark:
        yield mark


@contextlib.contextmanager
def held_folder(unit: str, jobs: str = JOBS) -> Iterator[int]:
    """Opens the folder of a service and holds it, as a path alone: /proc/self/fd/N leads there. Raises OSError."""
    parent = os.open(jobs, _HELD | os.O_DIRECTORY)
    try:
        with _held(parent, unit.removesuffix(".service"), os.O_DIRECTORY) as folder:
            yield folder
    finally:
        os.close(parent)


@contextlib.contextmanager
def _held(folder: int, name: str, flags: int = 0) -> Iterator[int]:
    """Opens what has this name in a folder, on the folder's own file system. Raises OSError."""
    if "/" in name:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    descriptor = os.open(name, _HELD | flags, dir_fd=folder)
    try:
        if _mount_of(descriptor) != _mount_of(folder):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
        yield descriptor
    finally:
        os.close(descriptor)


def _mount_of(descriptor: int) -> bytes:
    """Reads the mount that something is on, of which the kernel knows by itself; see proc_pid_fdinfo(5)."""
    with _opened(f"/proc/self/fdinfo/{descriptor}") as file:
        return os.read(file, 4096).partition(b"mnt_id:")[2].split()[0]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    # One that has a lease on it would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(folder: int, name: str, most: int) -> bytes:
    """Reads the first bytes of a file, of the folder's owner or root: b"" of anything else. Raises OSError."""
    with _held(folder, name) as held:
        status = os.fstat(held)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.fstat(folder).st_uid):
            return b""
        with _opened(f"/proc/self/fd/{held}") as file:
            # Its size is no promise: it may have shrunk meanwhile.
            return os.pread(file, min(most, status.st_size), 0)
