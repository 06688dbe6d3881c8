"""Writes and reads the CPUs that torchpard gives a running service for now: a file for each in /run/torchpar/given.

torchpard alone writes there. A service that starts waits until its file has its own invocation, and its processes look
into it again between two steps or batches. Runs under any Python from 3.9 on.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.paths import GIVEN
from torchpar.contract.typed_json import ShapeError, parse_json, shape

VERSION = 1
# Of a file; a thousand ranks with long lists of CPUs have less.
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class GivenRank:
    """The CPUs of one process, and the number of its compute threads (1 or more)."""

    cpus: CpuSet
    threads: int


@dataclass(frozen=True)
class Loan:
    """The CPUs that a service has of another one (`unit`), which does not need them now."""

    unit: str
    cpus: CpuSet


@dataclass(frozen=True)
class Given:
    """The CPUs of a unit in one run of it (`invocation`, systemd's INVOCATION_ID), by rank, beside those `planned`.

    `invocation` is "" where it does not run. `since` is the time when it got them, in seconds since the epoch; `why`
    names the services that it shares the planned ones with. `had` are the sets that it was given before in this run,
    and `control_group` has its processes.

    With `loans`, `ranks` have CPUs of other services beside what they have without (`own`). `lent_to` names the
    services that have its own CPUs, as it has no use for them.
    """

    unit: str
    invocation: str
    ranks: tuple[GivenRank, ...]
    planned: tuple[GivenRank, ...]
    since: float
    why: str = ""
    had: tuple[CpuSet, ...] = ()
    control_group: str = ""
    own: tuple[GivenRank, ...] = ()
    loans: tuple[Loan, ...] = ()
    lent_to: str = ""
    version: int = VERSION

    @property
    def cpus(self) -> CpuSet:
        """All CPUs of its ranks."""
        return CpuSet.union(rank.cpus for rank in self.ranks)

    @property
    def planned_cpus(self) -> CpuSet:
        """All CPUs that are planned for its ranks."""
        return CpuSet.union(rank.cpus for rank in self.planned)

    @property
    def is_moved(self) -> bool:
        """Says whether it has, or has had in this run, others than those planned: then its threads are torchpard's."""
        return self.ranks != self.planned or bool(self.had)


def kept_folder(folder: str) -> str:
    """Returns the folder beside that of the files, with what services were started with that are never moved.

    Not in the same: whoever finds a file there at its start waits for torchpard.
    """
    return f"{folder}-kept"


def make_given_json(given: Given) -> str:
    """Makes the text of a unit's file."""
    data = {
        **vars(given),
        "ranks": [_rank_json(rank) for rank in given.ranks],
        "planned": [_rank_json(rank) for rank in given.planned],
        "had": [str(cpus) for cpus in given.had],
        "own": [_rank_json(rank) for rank in given.own],
        "loans": [{"unit": loan.unit, "cpus": str(loan.cpus)} for loan in given.loans],
    }
    return json.dumps(data, sort_keys=True) + "\n"


def _rank_json(rank: GivenRank) -> dict[str, object]:
    return {"cpus": str(rank.cpus), "threads": rank.threads}


def parse_given(text: bytes) -> Given | None:
    """Parses the text of a unit's file; None for anything else."""
    try:
        given = shape(parse_json(text), Given)
    except ShapeError:
        return None
    ranks = given.ranks + given.planned + given.own
    same = len(given.ranks) == len(given.planned) and len(given.own) in (0, len(given.ranks))
    sound = same and all(rank.cpus and rank.threads > 0 for rank in ranks)
    return given if sound and given.version == VERSION else None


def version_of(path: str) -> tuple[int, int] | None:
    """Returns what changes whenever a unit's file does, as it is a new one each time; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def read_given(unit: str, folder: str = GIVEN) -> Given | None:
    """Reads the file of a unit; None where there is none. A file is replaced as a whole, so what is read is whole."""
    try:
        descriptor = os.open(os.path.join(folder, unit), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return parse_given(os.read(descriptor, _MOST_BYTES))
        finally:
            os.close(descriptor)
    except OSError:
        return None
