"""The exception tree and the exit statuses.

    TorchparError               a message for a person, and the exit status that goes with it
    ├── ConfigError             the configuration is invalid: every problem, with file and line
    ├── NoSuchServiceError      a command was given the name of no service
    ├── FactsError              the machine's facts cannot be read, or are not those of a machine
    ├── PlacementError          what is asked for does not fit this host
    │   └── CoresError          more cores than there are; with less asked for it may fit
    ├── JobSettingsError        what a unit tells its job cannot be read
    ├── RendezvousError         the hosts of a job cannot meet
    ├── SchedulerError          what a batch scheduler says of its job makes no sense
    ├── StoreError              the store of generations is damaged or cannot be written
    ├── SystemdError            systemd refused, or has something else than was meant
    ├── SystemdAbsentError      systemd is not running here
    ├── BusyError               another torchpar holds the lock
    └── NotPermittedError       this needs root

Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class ExitStatus(enum.IntEnum):
    """The meanings of a command's exit status; the larger values are those of sysexits.h."""

    DONE = 0  # in sync, or done
    FAILED = 1  # the operation failed
    DIFFERS = 2  # `torchpar check`: the conf is newer than what is in force
    UNKNOWN = 3  # cannot tell, for example /proc of another user without root
    USAGE = 64  # `torchpar plan --no-such-option`
    UNAVAILABLE = 69  # systemd is not running
    BUSY = 75  # another apply holds the lock, or a peer is not there; try again
    NOT_PERMITTED = 77  # `torchpar apply` without root
    CONFIG = 78  # the configuration is invalid


class TorchparError(Exception):
    """A failure that a person can mend. `str()` is the whole message, one line or several."""

    exit_status = ExitStatus.FAILED


class Place(NamedTuple):
    """A line of a file of the conf, or a whole file; its text is "file:line" or "file"."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return printable(self.file) if self.line is None else f"{printable(self.file)}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the conf, where it is, and what to do; its text is "file:line: what and what to do".

    Whoever wants the place takes it from here: no text is taken apart again, as a file may be called "a: b.conf".
    """

    place: Place
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def printable(text: str, most: int = 400) -> str:
    """Makes a text from outside fit for one line of a message: no line breaks or escape sequences, and not endless."""
    text = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class ConfigError(TorchparError):
    """The configuration is invalid. `found` are the problems, `problems` their texts, each one line."""

    exit_status = ExitStatus.CONFIG

    def __init__(self, found: Sequence[Problem | str]) -> None:
        self.found = tuple(found)
        self.problems = tuple(map(str, found))
        super().__init__("\n".join(self.problems))


class NoSuchServiceError(TorchparError):
    """A command was given the name of no service; the message has the nearest one."""

    exit_status = ExitStatus.USAGE


class FactsError(TorchparError):
    """The machine's facts cannot be read."""

    exit_status = ExitStatus.UNKNOWN


class PlacementError(TorchparError):
    """The configuration asks for more than fits the host. `unit` is the service that asks, None if it is [Host]."""

    exit_status = ExitStatus.CONFIG

    def __init__(self, message: str, unit: str | None = None) -> None:
        super().__init__(message)
        self.unit = unit


class CoresError(PlacementError):
    """Services ask for more cores, by CPUs= or by Ranks=, than there are. With less asked for it may fit."""


class JobSettingsError(TorchparError):
    """The variable that a unit sets for its job is not what torchpar renders."""

    exit_status = ExitStatus.CONFIG


class RendezvousError(TorchparError):
    """The hosts of a job cannot meet. The status says whether a later try may do better (75) or the conf is wrong."""

    exit_status = ExitStatus.BUSY


class SchedulerError(TorchparError):
    """A batch scheduler has told a process of its job what it does not write, or what is not for this process."""

    exit_status = ExitStatus.CONFIG


class StoreError(TorchparError):
    """The store of generations is damaged or cannot be written."""


class SystemdError(TorchparError):
    """systemd refused something, or holds something else than was meant."""


class SystemdAbsentError(TorchparError):
    """systemd is not running on this host."""

    exit_status = ExitStatus.UNAVAILABLE


class BusyError(TorchparError):
    """Another torchpar command holds the lock."""

    exit_status = ExitStatus.BUSY


class NotPermittedError(TorchparError):
    """The command needs root."""

    exit_status = ExitStatus.NOT_PERMITTED
