"""Takes the CPUs and threads that torchpard gives this service for now: at its start, and later between two steps.

A service that torchpard may move has a file of its own in /run/torchpar/given when it starts, and waits until that says
what it gets in this run. Its threads are moved by torchpard; how many there are is for the process itself to change.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Optional

from torchpar.contract.given import Given, GivenRank, read_given
from torchpar.contract.job import JobSettings, RankSettings
from torchpar.contract.journal import Priority, say
from torchpar.contract.paths import GIVEN

# Seconds that a start waits for torchpard, which may just be killed and come back.
PATIENCE = 2.0
_PAUSE = 0.01
# Seconds between two looks at the file, at the least: a step may take a millisecond.
PERIOD = 0.05

# GNU's, LLVM's and Intel's.
_OPENMP = re.compile(r"\s(/[^\n]*/lib(?:gomp|omp|iomp5)[^/\n]*\.so[^/\n]*)$", re.MULTILINE)
_PAUSE_SOFT = 1  # omp_pause_soft of <omp.h>: what was set stays

Read = Callable[[str], Optional[Given]]


def take(
    settings: JobSettings, rank: RankSettings, environ: Mapping[str, str], *, read: Read = read_given
) -> RankSettings:
    """Returns the rank as torchpard gives it at the start of the service: waits for that, but not for long.

    As planned where nobody moves this service, or torchpard does not answer.
    """
    until = time.monotonic() + PATIENCE
    while (given := read(settings.service)) is not None:
        if given.invocation == environ.get("INVOCATION_ID"):
            return _of(given, settings, rank)
        if time.monotonic() > until:
            say(f"torchpard has not said within {PATIENCE:g} s which CPUs are free: it starts as planned")
            break
        time.sleep(_PAUSE)
    return rank


def now(
    settings: JobSettings, rank: RankSettings, environ: Mapping[str, str], *, read: Read = read_given
) -> RankSettings:
    """Returns the rank as torchpard has given it by now; as planned where it has said nothing of this run."""
    given = read(settings.service)
    if given is None or given.invocation != environ.get("INVOCATION_ID"):
        return rank
    return _of(given, settings, rank)


def _of(given: Given, settings: JobSettings, rank: RankSettings) -> RankSettings:
    if len(given.ranks) != len(settings.ranks):
        return rank
    mine: GivenRank = given.ranks[settings.ranks.index(rank)]
    return dataclasses.replace(rank, cpus=str(mine.cpus), threads=mine.threads)


def end_idle_threads() -> None:
    """Ends the threads of this thread's OpenMP pool; those that it needs are made anew.

    A smaller team leaves the others waiting, and with OMP_WAIT_POLICY=active they spin, on the same CPUs now: a job was
    eleven times slower so. Only OpenMP's own library knows them; see omp_pause_resource_all in OpenMP 5.0, 3.2.44.
    """
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {match[1] for line in maps if (match := _OPENMP.search(line))}
    for path in paths:
        try:
            ctypes.CDLL(path).omp_pause_resource_all(_PAUSE_SOFT)
        except (OSError, AttributeError) as error:
            say(f"{path}: idle threads stay: {error}", Priority.WARNING)


class Threads:
    """The compute threads of this process, which follow its CPUs between two steps.

    A number that the script has set since stays; so does any in a script that asks torch for deterministic algorithms,
    as sums of other parts differ in their last digits.
    """

    def __init__(
        self,
        torch: Any,
        settings: JobSettings,
        rank: RankSettings,
        *,
        folder: str = GIVEN,
        end_idle_threads: Callable[[], None] = end_idle_threads,
    ) -> None:
        """`rank` is as planned. Nothing has been changed yet."""
        self._end_idle_threads = end_idle_threads
        self._torch, self._settings, self._rank = torch, settings, rank
        self._path = os.path.join(folder, settings.service)
        self._folder = folder
        self._seen = self._look()
        self._set = now(settings, rank, os.environ, read=self._read).threads
        self._next = 0.0

    def follow(self, time_now: float) -> None:
        """Sets the number of threads that torchpard has given since; at this time of the monotonic clock."""
        if time_now < self._next:
            return
        self._next = time_now + PERIOD
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        torch = self._torch
        threads = now(self._settings, self._rank, os.environ, read=self._read).threads
        if torch.get_num_threads() != self._set or threads == self._set:
            return
        deterministic = getattr(torch, "are_deterministic_algorithms_enabled", None)
        if deterministic is not None and deterministic():
            return
        torch.set_num_threads(threads)
        if threads < self._set:
            self._end_idle_threads()
        self._set = threads

    def _read(self, unit: str) -> Given | None:
        return read_given(unit, self._folder)

    def _look(self) -> tuple[int, int] | None:
        """Returns what changes with the file, which is a new one each time."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
