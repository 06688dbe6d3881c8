"""Follows what torchpard gives an inference service for now: its CPUs, and how many compute at the same time.

Each compute thread has one thread of torch, however many there are: another number of them changes no answer. How many
may compute is looked up where batches are handed out, so that a service without requests looks at nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace

from torchpar.contract.given import read_given, version_of
from torchpar.contract.job import JobSettings, RankSettings
from torchpar.contract.paths import GIVEN
from torchpar.runtime import given


def wait_for_part(settings: JobSettings, environ: Mapping[str, str]) -> None:
    """Waits until torchpard has said which CPUs are free for the service that starts, but not for long."""
    given.take(settings, settings.ranks[0], environ)


def rank_now(settings: JobSettings, rank: RankSettings, environ: Mapping[str, str]) -> RankSettings:
    """Returns a rank with the CPUs that torchpard has given it by now; its number of threads is as planned."""
    return replace(rank, cpus=given.now(settings, rank, environ).cpus)


class ComputeThreads:
    """The number of compute threads that a process may use now, of those that it has; asked for any number of times.

    Workers= of the conf stays, and so do accelerators, of which each has one thread.
    """

    def __init__(
        self,
        settings: JobSettings,
        rank: RankSettings,
        *,
        index: int = 0,
        processes: int = 1,
        environ: Mapping[str, str] = os.environ,
        folder: str = GIVEN,
    ) -> None:
        """Takes the part of the process that is the index-th of those that share the rank's threads."""
        self._settings, self._rank, self._index, self._processes = settings, rank, index, processes
        self._environ, self._folder = environ, folder
        self._path = os.path.join(folder, settings.service)
        self._seen: tuple[int, int] | None = (-1, -1)
        self._next, self._number = 0.0, 1

    @classmethod
    def may_follow(cls, settings: JobSettings, rank: RankSettings) -> bool:
        """Says whether the number of a rank's compute threads follows its CPUs at all."""
        return settings.serve is not None and settings.serve.workers is None and not rank.gpus

    def __call__(self) -> int:
        """Returns the number, 1 or more."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + given.PERIOD
            seen = version_of(self._path)
            if seen != self._seen:
                self._seen, self._number = seen, self._read()
        return self._number

    def _read(self) -> int:
        of_unit = given.now(
            self._settings, self._rank, self._environ, read=lambda unit: read_given(unit, self._folder)
        ).threads
        # As the first process of a place divides what is planned: none has two more than another.
        return max(1, of_unit // self._processes + (self._index < of_unit % self._processes))
