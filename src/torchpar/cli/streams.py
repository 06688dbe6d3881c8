"""The standard streams of a command: what cannot be written ends in one line, and no character is refused."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any, TextIO

from torchpar.contract.errors import TorchparError


class OutputError(TorchparError):
    """The output of a command cannot be written."""


class _Output(io.FileIO):
    """Writes all of it, or says so in an error of its own, which no other file's can be taken for.

    Where nobody reads any more, nothing is written from then on.
    """

    def __init__(self, number: int, called: str) -> None:
        super().__init__(number, "w", closefd=False)
        self._called = called

    def write(self, data: Any, /) -> int:
        try:
            # A terminal that its last user left without waiting (O_NONBLOCK) takes nothing now and then.
            while (written := super().write(data)) is None:
                select.select((), (self,), ())
        except BrokenPipeError:
            # `torchpar apply | head`: the reader has what it wanted, and the command goes on to its own end.
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            return memoryview(data).nbytes
        except OSError as error:
            raise OutputError(f"{self._called} cannot be written: {error.strerror}") from None
        return written


def open_streams() -> None:
    """Sets sys.stdout and sys.stderr up for a command. Raises OutputError when stdout is closed.

    In place of one that is closed there is /dev/null from then on, so that no file of ours gets its number.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for number in closed:
        os.open(os.devnull, os.O_RDWR)
        assert _is_open(number)
    sys.stdout, sys.stderr = _open(1, "stdout", sys.stdout), _open(2, "stderr", sys.stderr)
    if 1 in closed:
        raise OutputError("stdout is closed, and nothing has been done; to do it unheard: >/dev/null")


def close_streams() -> bool:
    """Writes what is left; false where that cannot be done. The interpreter finds nothing left to complain of."""
    whole = True
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, OutputError):
            whole = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            with contextlib.suppress(OSError):
                stream.flush()
    return whole


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _open(number: int, called: str, before: TextIO | None) -> TextIO:
    encoding = before.encoding if before else "utf-8"
    buffer = io.BufferedWriter(_Output(number, called))
    # What a locale has no letter for, such as bytes of a file's name that are no text, is written as an escape.
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=os.isatty(number))
