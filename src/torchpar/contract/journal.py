"""Writes lines for people to standard error, with their priority where that is the journal (sd-daemon(3)).

Everything that torchpar says while it runs goes through here, in a job, the server and torchpard alike. No logger is
between, which somebody would have to set up in every process, and which a job's own code sets up as it likes.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping


class Priority(enum.IntEnum):
    """The priorities of syslog(3) that are used."""

    ERROR = 3  # something was lost: a model is not served, a batch failed
    WARNING = 4  # something is not as it was meant, and it goes on
    INFO = 6


# Writes a line with a priority, and fields of the journal's beside it.
Tell = Callable[[Priority, str, Mapping[str, str]], None]


def say(text: str, priority: Priority = Priority.INFO, *, error: BaseException | None = None) -> None:
    """Writes a line, or several, each of which begins with the program's name; `error`: its traceback follows.

    A text from outside can forge no line of another program's, nor a field of the journal's.
    """
    lines = text.splitlines()
    if error is not None:
        import traceback  # rarely needed, and jobs that start wait for imports

        lines += "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
    write([f"torchpar: {line}" for line in lines], priority)


def write(lines: list[str], priority: Priority) -> None:
    """Writes lines as they are, to the file descriptor itself: a script may have put something else in sys.stderr."""
    text = "".join(f"{mark(priority)}{line}\n" for line in lines)
    try:
        os.write(2, text.encode(errors="backslashreplace"))
    except OSError:
        # Nobody reads it, and the job must not end for that.
        return


def mark(priority: Priority) -> str:
    """Makes the priority at the beginning of a line on standard error; "" where that is not the journal."""
    return f"<{int(priority)}>" if is_journal(2) else ""


def is_journal(descriptor: int) -> bool:
    """Says whether a stream leads to the journal: systemd names the one that does ($JOURNAL_STREAM, systemd.exec(5)).

    It may have been redirected since.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
