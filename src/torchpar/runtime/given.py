"""Takes the CPUs and threads that torchpard gives this service for now: at its start, and later between two steps.

A service that torchpard may move has a file of its own in /run/torchpar/given when it starts, and waits until that says
what it gets in this run. Its threads are moved by torchpard; how many there are is for the process itself to change.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Optional

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank, read_given, version_of
from torchpar.contract.job import JobSettings, RankSettings
from torchpar.contract.journal import Priority, say
from torchpar.contract.paths import GIVEN
from torchpar.runtime.patches.stand_in import StandIn, replace_method

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
    # Those that it was started with; a torchpard that has come since may know a newer plan alone.
    if given.planned != tuple(GivenRank(CpuSet.parse(one.cpus), one.threads) for one in settings.ranks):
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


def has_compiled() -> bool:
    """Says whether torch.compile is in use: it compiles anew for each number of threads, or fails if it may not.

    Without importing any of it. Optimizers import it, too, and leave None among the backends (torch 2.13).
    """
    frames, utils = (sys.modules.get(f"torch._dynamo.{name}") for name in ("eval_frame", "utils"))
    # The backends are there from the call of torch.compile on, from torch 2.1; what has been compiled is counted.
    backends = getattr(frames, "cached_backends", {}).values()
    return any(backend is not None for backend in list(backends)) or bool(getattr(utils, "counters", None))


class Threads:
    """The compute threads of this process, which follow its CPUs between two steps; when in doubt, they stay.

    They stay for good once the script has set a number or asked torch for deterministic algorithms, as sums of other
    parts differ in their last digits, or uses torch.compile. Deterministic ones have the planned number, whoever runs
    beside them.
    """

    def __init__(
        self,
        torch: Any,
        settings: JobSettings,
        rank: RankSettings,
        threads: int,
        *,
        folder: str = GIVEN,
        end_idle_threads: Callable[[], None] = end_idle_threads,
    ) -> None:
        """`rank` is as planned, and `threads` what has been set in torch. Nothing is changed yet."""
        self._torch, self._settings, self._rank, self._set = torch, settings, rank, threads
        self._set_threads, self._end_idle_threads = torch.set_num_threads, end_idle_threads
        self._folder, self._path = folder, os.path.join(folder, settings.service)
        self._seen: tuple[int, int] | None = None
        self._stay, self._said = "", False
        self._next = 0.0

    def watch_script(self) -> None:
        """Notes from now on when the script says by itself how torch computes."""
        torch = self._torch

        def set_num_threads(*arguments: Any, **named: Any) -> None:
            self._set_threads(*arguments, **named)
            self._stay = self._stay or "the script has set that number"

        def make(original: Any) -> Any:
            def asked(*arguments: Any, **named: Any) -> None:
                original(*arguments, **named)
                heard()

            return asked

        heard = self._heard_deterministic
        # In both places, so that it is found again by its name.
        torch.set_num_threads = torch._C.set_num_threads = StandIn(torch.set_num_threads, set_num_threads)
        for name in ("use_deterministic_algorithms", "set_deterministic_debug_mode"):
            if hasattr(torch, name):
                replace_method(torch, name, make)

    def follow(self, time_now: float) -> None:
        """Sets the number of threads that torchpard has given since; at this time of the monotonic clock."""
        if time_now < self._next:
            return
        self._next = time_now + PERIOD
        seen = version_of(self._path)
        if seen == self._seen:
            return
        self._heard_deterministic()
        threads = now(self._settings, self._rank, os.environ, read=self._read).threads
        if threads != self._set and has_compiled():
            self._stay = self._stay or "torch.compile would compile anew for another"
        if self._stay:
            self._say_stays(threads)
        elif threads != self._set:
            if self._torch.get_num_threads() != self._set:
                # Somebody else has set it, perhaps for a while: it is looked at again.
                return
            self._set_threads(threads)
            if threads < self._set:
                self._end_idle_threads()
            self._set = threads
        self._seen = seen

    def _heard_deterministic(self) -> None:
        deterministic = getattr(self._torch, "are_deterministic_algorithms_enabled", None)
        if self._stay or deterministic is None or not deterministic():
            return
        planned = self._rank.threads
        if planned != self._set == self._torch.get_num_threads() and not has_compiled():
            self._set_threads(planned)
            self._set = planned
        self._stay = "the script asks for deterministic algorithms"

    def _say_stays(self, threads: int) -> None:
        number = self._torch.get_num_threads()
        if threads < number and not self._said:
            self._said = True
            say(f"its {number} threads stay on CPUs for {threads}, which torchpard has given it: {self._stay}")

    def _read(self, unit: str) -> Given | None:
        return read_given(unit, self._folder)
