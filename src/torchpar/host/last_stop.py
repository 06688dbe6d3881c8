"""Reads how the last stop of a training job went, as its ExecStop= notes it in its CacheDirectory=: torchpar-stop."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchpar.host.job_folder import read_file
from torchpar.host.reading import NotReadableError, Reader

_FOLDER = "/var/cache/torchpar/train"
_FILE = "torchpar-stop"
_NOTE = re.compile(rb"([0-9]{1,9}) ([0-9]{1,9})\n")
# Of a disk that works, the kernel answers at once.
_SECONDS = 0.5


@dataclass(frozen=True)
class LastStop:
    """The time that the last stop took, in seconds, and how many stops have been forced: SIGTERM after their time.

    `seconds` is None where there was none.
    """

    seconds: int | None
    forced: int


class LastStops:
    """Reads the notes of jobs; after one has not answered, none is read while it does not."""

    def __init__(self, folder: str = _FOLDER) -> None:
        self._folder = folder
        self._reader = Reader(_SECONDS)

    def read(self, name: str) -> LastStop | None:
        """Reads the note of a job; None where that is no such note. Its user may have written anything there."""
        try:
            text = self._reader.do(lambda: read_file(name, self._folder, _FILE, 32))
        except FileNotFoundError:
            return LastStop(None, 0)
        except (OSError, NotReadableError):
            return None
        match = _NOTE.fullmatch(text)
        return LastStop(int(match[1]), int(match[2])) if match else None
