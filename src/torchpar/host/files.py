"""Writes that are whole or not there: a file and its directory reach the disk before anything points at them.

Every change goes through a function of os, and every error names its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from torchpar.contract.owners import find_strangers

# AT_FDCWD and RENAME_EXCHANGE of <fcntl.h> and <linux/fs.h>, which Python has not.
_HERE, _EXCHANGE = -100, 2


def write_new(path: Path, text: str) -> None:
    """Creates a file that must not exist, and brings it to the disk. Never follows a link. Raises OSError."""
    with _named(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            data = memoryview(text.encode("utf-8", "surrogateescape"))
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Brings a directory's entries to the disk. Raises OSError."""
    with _named(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, if it is there. Raises OSError."""
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def exchange(one: Path, other: Path) -> None:
    """Gives each of two places what the other has, at once; see RENAME_EXCHANGE in rename(2). Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), os.fspath(one))


def own_directory(path: Path) -> None:
    """Gives a directory to this user, so that no other can write it. Never follows a link. Raises OSError."""
    with _named(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            own(descriptor, 0o755)
        finally:
            os.close(descriptor)


def own(descriptor: int, mode: int) -> None:
    """Gives an open file to this user, with this mode, unless it is so already. Raises OSError."""
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        os.fchown(descriptor, os.geteuid(), os.getegid())
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(descriptor, mode)


def find_open(*directories: Path) -> Path | None:
    """Finds the first place, of these directories and everything on the way to them, that others than this user and
    root can change or replace, or that is no directory.

    None when there is none. Raises OSError.
    """
    for directory in directories:
        for stranger in find_strangers(os.fspath(directory.absolute()), (0, os.geteuid())):
            return Path(stranger.place)
        if not stat.S_ISDIR(directory.lstat().st_mode):
            return directory
    return None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def replace_text(path: Path, text: str) -> None:
    """Replaces a file at once, so that a reader sees all of the old text or all of the new. Raises OSError."""
    new = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    write_new(new, text)
    with _named(path):
        os.rename(new, path)
