"""Prepares a DataLoader worker: one thread, and all CPUs of its rank.

torch gives a worker one thread of its own, but not of numpy's BLAS or OpenCV. And where the user's environment has
OpenMP bind its threads (OMP_PROC_BIND=true), the process that forks sits on one core, and all its workers with it.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import re
import sys
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.job import JobSettings, RankSettings
from torchpar.contract.journal import Priority, say
from torchpar.runtime import given
from torchpar.runtime.patches.stand_in import StandIn, replace_method
from torchpar.runtime.signals import make_ending, spare_worker

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# OpenBLAS as Debian, numpy's wheels (64_), and conda have it.
_SETTERS = ("openblas_set_num_threads", "scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_")


@dataclass(frozen=True)
class WorkerCpus:
    """The CPUs of a rank's loader workers (`planned`), and those of them that are theirs alone (`loaders`).

    `settings` and `rank` are None where somebody else has narrowed the process: then they never change. `spared`: the
    signals that ask the job to stop are none of theirs.
    """

    planned: frozenset[int]
    loaders: frozenset[int]
    settings: JobSettings | None
    rank: RankSettings | None
    spared: bool = False

    def now(self) -> frozenset[int]:
        """Returns the CPUs of a worker that begins now: torchpard may have given the service others meanwhile."""
        if not self.settings or not self.rank:
            return self.planned
        rank = given.now(self.settings, self.rank, os.environ)
        return self.planned if rank == self.rank else frozenset(CpuSet.parse(rank.cpus)) | self.loaders


class WorkerLoop(StandIn):
    """torch's function that a worker runs, with `begin` called once torch has set up the worker.

    Found again by its class when pickled: in a spawned process torch has its own function in that place.
    """

    def __init__(self, cpus: WorkerCpus) -> None:
        from torch.utils.data._utils import worker

        super().__init__(worker._worker_loop, self._begin)
        self._cpus = cpus
        self._position = list(inspect.signature(worker._worker_loop).parameters).index("init_fn")

    def __reduce__(self) -> tuple[type[WorkerLoop], tuple[WorkerCpus]]:
        return WorkerLoop, (self._cpus,)

    def _begin(self, *arguments: Any) -> None:
        """Runs the worker. The script's own worker_init_fn comes after `begin`, and has the last word."""
        changed = list(arguments)
        changed[self._position] = _then(self._cpus, changed[self._position])
        self._original(*changed)


def install(torch: Any, settings: JobSettings, rank: RankSettings, allowed: Set[int]) -> None:
    """Lets all workers that this process starts begin so, and the thread that pins their batches be on these CPUs.

    `allowed` are the CPUs of the process before torch was imported.
    """
    cpus, widen = make_worker_cpus(settings, rank, allowed), set_cpus

    def make(pin: Any) -> Any:
        def _pin_memory_loop(*arguments: Any) -> None:
            widen(cpus.now())
            pin(*arguments)

        return _pin_memory_loop

    try:
        from multiprocessing import popen_fork

        from torch.utils.data._utils import pin_memory, worker

        loop = WorkerLoop(cpus)
        replace_method(pin_memory, "_pin_memory_loop", make)
        if cpus.spared:
            replace_method(popen_fork.Popen, "terminate", make_ending)
        worker._worker_loop = loop
    except (AttributeError, ImportError, ValueError) as error:
        say(f"loader workers begin as torch has it: this torch has another inside ({error})", Priority.WARNING)


def make_worker_cpus(settings: JobSettings, rank: RankSettings, allowed: Set[int]) -> WorkerCpus:
    """Makes the CPUs of a rank's loader workers: what torchpard gives it, unless it has been narrowed to less."""
    now = given.now(settings, rank, os.environ)
    follows = set(CpuSet.parse(now.cpus)) <= allowed
    loaders = frozenset(CpuSet.parse(rank.loader_cpus))
    # Such as it is planned, also where it has begun with less.
    cpus = worker_cpus(rank, allowed | set(CpuSet.parse(rank.cpus)) if follows else allowed)
    spared = bool(settings.signals)
    if not follows:
        return WorkerCpus(cpus, loaders, None, None, spared)
    return WorkerCpus(cpus, loaders, settings, rank, spared)


def worker_cpus(rank: RankSettings, allowed: Set[int]) -> frozenset[int]:
    """Returns the CPUs of a rank's loader workers: the rank's and their own, as far as the rank has not been narrowed.

    Whoever has narrowed the process, by `systemctl edit` or in the script, means its workers too. A process with CPUs
    for its workers alone has narrowed itself to its own, as planned.
    """
    own, loaders = frozenset(CpuSet.parse(rank.cpus)), frozenset(CpuSet.parse(rank.loader_cpus))
    if own <= allowed:
        return own | loaders
    # None in common: somebody has moved it elsewhere altogether.
    return own & allowed or frozenset(allowed)


def begin(cpus: frozenset[int]) -> None:
    """Gives this process the CPUs, and one thread in each library that computes with several; and its name."""
    set_cpus(cpus)
    # As a newer torch does: by it ExecStop= knows what is no rank.
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("pt_data_worker")
    # For what is imported only now, and for programs that the worker starts.
    for name in _VARIABLES:
        os.environ[name] = "1"
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        libraries = set(re.findall(r"\s(/\S*openblas\S*\.so\S*)$", maps.read(), re.MULTILINE))
    for path in libraries:
        library = ctypes.CDLL(path)
        for name in _SETTERS:
            if hasattr(library, name):
                getattr(library, name)(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def set_cpus(cpus: frozenset[int]) -> None:
    """Lets the calling thread, and what it starts, run on all of the CPUs that the service has."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        say(
            f"a loader worker is not on CPUs {CpuSet(cpus)}: {error.strerror}; it keeps those of its parent",
            Priority.WARNING,
        )


def _then(cpus: WorkerCpus, init: Callable[[int], object] | None) -> Callable[[int], None]:
    def begin_and_init(number: int) -> None:
        try:
            begin(cpus.now())
            if cpus.spared:
                spare_worker()
        except Exception as error:  # whatever it is, it is not the job's failure and must not become it
            say(f"a loader worker is not set as planned: {error!r}", Priority.WARNING)
        if init is not None:
            init(number)

    return begin_and_init
