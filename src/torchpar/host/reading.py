"""Reads what a person names or leaves in a folder: regular files only, never more than agreed, never for ever."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from torchpar.contract.errors import printable

T = TypeVar("T")

_PIECE = 2**16

_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotReadableError(Exception):
    """A file that is not read, and why: a clause that follows its path."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{printable(path)}: {why}")
        self.path = path
        self.why = why


class Reader:
    """Does its work on a thread of its own: where a disk or a server does not answer, the kernel holds that thread
    alone, and whoever asked goes on after so many seconds.

    Nothing can end a thread that the kernel holds, so as long as it is there no second one is sent after it.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._at = ""
        self._held: threading.Thread | None = None

    def at(self, path: Path) -> Path:
        """Keeps what is looked at next, to name it where that does not come back."""
        self._at = os.fspath(path)
        return path

    def do(self, work: Callable[[], T]) -> T:
        """Does some work; returns or raises as it does. Raises NotReadableError when that takes too long."""
        if self._held is None or not self._held.is_alive():
            job = _Job(work)
            self._held = threading.Thread(target=job.run, daemon=True)
            self._held.start()
            self._held.join(self.seconds)
            if not self._held.is_alive():
                return job.outcome()
        raise NotReadableError(
            self._at,
            f"has not answered within {self.seconds:g} s, in which all must be read; "
            "see whether the disk or server that it is on works",
        )

    def bytes(self, path: Path, most: int) -> bytes:
        """Reads all of a regular file that has at most so many bytes. Raises NotReadableError and OSError."""
        data = read_start(self.at(path), most + 1)
        if len(data) > most:
            raise NotReadableError(self._at, f"is larger than {most // 1024} KiB")
        return data


def read_start(path: Path, most: int) -> bytes:
    """Reads the first bytes of a regular file, so many at most. Raises NotReadableError and OSError."""
    # Before it is opened: that alone makes a tape rewind or a watchdog bark, and waits for the other end of a pipe.
    _refuse_special(path, os.stat(path))
    # It may have become something else meanwhile, which must neither hold this process nor become its terminal.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _refuse_special(path, os.fstat(descriptor))
        data = bytearray()
        # Its size is no promise: it may grow, and those of /proc have none.
        while len(data) < most and (piece := os.read(descriptor, min(_PIECE, most - len(data)))):
            data += piece
    finally:
        os.close(descriptor)
    return bytes(data)


def why_not_opened(path: str, *, itself: bool) -> str:
    """Says why systemd is not to open this as a file for a service, "" where it may.

    `itself`: it does that before it has a process for the service, so at a pipe all of systemd would wait.
    """
    try:
        mode = 0 if path.endswith("/") else os.stat(path).st_mode
    except OSError:
        return ""
    if stat.S_ISDIR(mode):
        return "is a folder, and all that is in it would be read; name a file"
    if itself and stat.S_ISFIFO(mode):
        return f"is {_KINDS[stat.S_IFIFO]}, at whose other end systemd itself would wait for somebody; name a file"
    return ""


def _refuse_special(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise NotReadableError(os.fspath(path), f"is {kind}, and only regular files are read")


class _Job(Generic[T]):
    """Work on another thread, and what came of it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001  # it is raised where somebody waits for it
            self._error = error

    def outcome(self) -> T:
        if self._error is not None:
            raise self._error
        return self._results[0]
