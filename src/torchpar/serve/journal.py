"""The server's own log lines, on their way to the journal with the priority that they have."""

from __future__ import annotations

import logging
import os

# sd-daemon(3): the journal reads the priority at the beginning of a line.
_PRIORITIES = ((logging.ERROR, "<3>"), (logging.WARNING, "<4>"), (logging.NOTSET, "<6>"))


def log_to_journal() -> None:
    """Write what the server logs from now on to standard error, informative lines too."""
    log = logging.getLogger("torchpar.serve")
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())


class _Lines(logging.Handler):
    """Writes to the file descriptor itself: a handler's code may have put something else in sys.stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, each of its lines with the priority, which a terminal is not shown."""
        # systemd names the device and inode of the journal's stream; elsewhere the marks would only be noise.
        mark = next(mark for level, mark in _PRIORITIES if record.levelno >= level) if _is_journal() else ""
        text = "".join(f"{mark}torchpar: {line}\n" for line in self.format(record).splitlines())
        try:
            os.write(2, text.encode(errors="backslashreplace"))
        except OSError:
            # Nobody reads it, and requests must be answered all the same.
            return


def _is_journal() -> bool:
    try:
        about = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"
