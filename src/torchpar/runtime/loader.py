"""Gives DataLoader calls what they leave out, and only where the model sees the same samples in the same order.

What a call names stays. Whether a dataset can go to a forked worker is looked at when workers are first needed: until
then the script may have opened files. If workers fail on the very first batch, the process loads by itself, from where
it was. `persistent_workers` is not given to anyone: a change that the script makes to its dataset between two epochs
would no longer reach the workers, and a fork costs milliseconds.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import sys
from collections.abc import Callable, Set
from typing import Any, NamedTuple

from torchpar.environment import JobSettings, RankSettings
from torchpar.runtime import accelerator, workers
from torchpar.runtime.binding import parse_cpulist
from torchpar.runtime.observed import say
from torchpar.runtime.plainness import changes_itself, is_torchs_own
from torchpar.runtime.sharing import not_shareable

_MOST_LINES = 100
_LEAVE = "LoaderWorkers=off in torchpar.conf leaves such calls alone"


def install(torch: Any, settings: JobSettings, rank: RankSettings, allowed: Set[int]) -> None:
    """Watch the DataLoader calls of this process from now on, and how its workers begin.

    `allowed` are the CPUs of the process before torch was imported.
    """
    try:
        workers.install(worker_cpus(rank, allowed))
    except (AttributeError, ImportError, ValueError) as error:
        say(f"loader workers begin as torch has it: this torch has another inside ({error})")
    if settings.loader:
        try:
            Defaults(torch, settings, rank).watch()
        except (AttributeError, ImportError) as error:
            say(f"DataLoader calls are left alone: this torch has another inside ({error})")


def worker_cpus(rank: RankSettings, allowed: Set[int]) -> frozenset[int]:
    """The CPUs of a rank's loader workers: those planned for it, and for them, as far as it has not been narrowed.

    Whoever has narrowed the process, by `systemctl edit` or in the script, means its workers too. A process with CPUs
    for its workers alone has narrowed itself to its own, as planned.
    """
    own, loaders = frozenset(parse_cpulist(rank.cpus)), frozenset(parse_cpulist(rank.loader_cpus))
    if own <= allowed:
        return own | loaders
    # None in common: somebody has moved it elsewhere altogether.
    return own & allowed or frozenset(allowed)


class Given(NamedTuple):
    """What a loader was given: workers, a start method for them; and whether its batches may be pinned."""

    workers: bool
    context: bool
    may_pin: bool
    where: str


class Defaults:
    """The planned arguments, and the three places in torch where they are put in force and taken back."""

    def __init__(self, torch: Any, settings: JobSettings, rank: RankSettings) -> None:
        self._torch = torch
        self._settings = settings
        self._rank = rank
        self._process = os.getpid()
        self._told: set[tuple[str, str]] = set()

    def watch(self) -> None:
        """Wrap DataLoader's constructor, the making of its iterator, and the iterator's first step."""
        from torch.utils.data import dataloader

        loader_class, iterator_class = dataloader.DataLoader, dataloader._BaseDataLoaderIter
        self._signature = inspect.signature(loader_class.__init__)
        self._initialize = loader_class.__init__
        self._iterator = loader_class._get_iterator
        self._next = iterator_class.__next__

        @functools.wraps(self._initialize)
        def __init__(loader: Any, *arguments: Any, **named: Any) -> None:
            self._make(loader, arguments, named)

        @functools.wraps(self._iterator)
        def _get_iterator(loader: Any) -> Any:
            return self._iterate(loader)

        @functools.wraps(self._next)
        def __next__(iterator: Any) -> Any:
            begun = iterator.__dict__.get("_torchpar_begun")
            return self._next(iterator) if begun is None else begun.next(iterator)

        loader_class.__init__, loader_class._get_iterator = __init__, _get_iterator
        iterator_class.__next__ = __next__

    def _make(self, loader: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """DataLoader's constructor, with what the call leaves out."""
        try:
            given = self._signature.bind(loader, *arguments, **named).arguments
        except TypeError:
            given = None
        if given is None or os.getpid() != self._process:
            # A wrong call fails as it would without us; the processes that the script starts are its own affair.
            self._initialize(loader, *arguments, **named)
            return
        where = _caller(loader)
        extra = self._extra(given, where)
        self._initialize(loader, *arguments, **named, **extra)
        # Set by name and not kept in a table: the loader may be copied or pickled.
        loader._torchpar_given = Given(
            workers="num_workers" in extra,
            context="multiprocessing_context" in extra,
            may_pin="pin_memory" not in given,
            where=where,
        )

    def _extra(self, given: dict[str, Any], where: str) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if "num_workers" in given:
            asked = given["num_workers"]
            self._warn_if_too_many(asked, where)
        else:
            asked = self._rank.loader_workers
            extra = self._planned_workers(given, where) if asked else {}
            asked = extra.get("num_workers", 0)
        prefetch = self._settings.prefetch_factor
        # A number, as a script may hand anything over: that is for torch to refuse.
        if prefetch and "prefetch_factor" not in given and isinstance(asked, int) and asked > 0:
            extra["prefetch_factor"] = prefetch
        if extra:
            values = ", ".join(f"{name}={value}" for name, value in extra.items() if name != "multiprocessing_context")
            self._tell(where, f"DataLoader(...) gets {values} as planned; {_LEAVE}")
        return extra

    def _planned_workers(self, given: dict[str, Any], where: str) -> dict[str, Any]:
        """num_workers where that is safe, as far as the call alone shows it."""
        count = self._rank.loader_workers
        dataset = given.get("dataset")
        why = self._why_not(given)
        if why:
            self._tell(where, f"DataLoader(...) loads in the process itself: {why}; num_workers= in the call sets it")
            return {}
        if isinstance(dataset, self._torch.utils.data.IterableDataset):
            # Each worker has the whole dataset, unless it shards itself: and that changes the order.
            count = 1
        if given.get("multiprocessing_context") is not None:
            return {"num_workers": count}
        # Said, so that the workers' start does not settle the default: the script may still want to set it.
        return {"num_workers": count, "multiprocessing_context": "fork"}

    def _why_not(self, given: dict[str, Any]) -> str | None:
        """Why the process must load by itself; None if it need not."""
        if multiprocessing.current_process().daemon:
            return "it is itself a daemonic process, which may have no children"
        if given.get("multiprocessing_context") is None:
            why = _why_not_fork()
            if why:
                return why
        for name in ("sampler", "batch_sampler"):
            if not is_torchs_own(given.get(name)):
                return f"its {name} is the script's own and would be asked some batches ahead"
        if isinstance(given.get("dataset"), self._torch.utils.data.IterableDataset):
            return changes_itself(given["dataset"])
        return None

    def _warn_if_too_many(self, asked: Any, where: str) -> None:
        cpus = parse_cpulist(self._rank.cpus) | parse_cpulist(self._rank.loader_cpus)
        threads = self._torch.get_num_threads()
        if isinstance(asked, int) and asked > 0 and asked + threads > len(cpus):
            self._tell(
                where,
                f"DataLoader(num_workers={asked}) and {threads} compute threads are more than this rank's"
                f" {len(cpus)} CPUs: they take turns; Threads= in torchpar.conf, or the call, makes room",
            )

    def _iterate(self, loader: Any) -> Any:
        """The making of an iterator: the last look at whether the injected workers can be."""
        given = loader.__dict__.get("_torchpar_given")
        if given is None or os.getpid() != self._process:
            return self._iterator(loader)
        # Without workers it would be one more copy in the process that computes.
        if given.may_pin and loader.num_workers and self._pin_memory() and not loader.pin_memory:
            loader.pin_memory = True
            self._tell(given.where, "DataLoader(...) gets pin_memory=True as planned: an accelerator is in use")
        if not given.workers or not loader.num_workers:
            return self._iterator(loader)
        why = self._why_not_after_all(loader)
        if why:
            self.take_back(loader, why)
            return self._iterator(loader)
        before = _generators(self._torch, loader)
        try:
            iterator = self._iterator(loader)
        except OSError as error:
            # No more processes, memory or shared memory.
            before()
            self.take_back(loader, f"workers cannot be started: {error.strerror or error}")
            return self._iterator(loader)
        iterator._torchpar_begun = _Begun(self, loader, before)
        return iterator

    def _why_not_after_all(self, loader: Any) -> str | None:
        why = _why_not_fork() if loader._torchpar_given.context else None
        if why:
            return why
        what = not_shareable(
            self._torch, dataset=loader.dataset, collate_fn=loader.collate_fn, worker_init_fn=loader.worker_init_fn
        )
        return f"a worker could not share {what}" if what else None

    def _pin_memory(self) -> bool:
        return self._settings.pin_memory is not False and bool(self._rank.gpus) and accelerator.in_use(self._torch)

    def take_back(self, loader: Any, why: str) -> None:
        """Let a loader that was given workers do without, from now on."""
        loader.num_workers = 0
        loader.prefetch_factor = self._signature.parameters["prefetch_factor"].default
        given = loader._torchpar_given
        if given.context:
            loader.multiprocessing_context = None
        loader._torchpar_given = given._replace(workers=False)
        self._tell(given.where, f"DataLoader(...) loads in the process itself after all: {why}")

    def _tell(self, where: str, line: str) -> None:
        """Each line once, however often its place is passed."""
        if (where, line) not in self._told and len(self._told) < _MOST_LINES:
            self._told.add((where, line))
            say(f"{where}: {line}")


class _Begun:
    """An iterator of workers that were given; until their first batch is there, the process can take their place."""

    def __init__(self, defaults: Defaults, loader: Any, before: Callable[[], None]) -> None:
        self._defaults = defaults
        self._loader = loader
        self._before = before
        self._instead: Any = None

    def next(self, iterator: Any) -> Any:
        """The iterator's next batch."""
        defaults = self._defaults
        if self._instead is not None:
            return defaults._next(self._instead)
        try:
            batch = defaults._next(iterator)
        except StopIteration:
            raise
        except Exception as error:
            if iterator._num_yielded or not _is_of_workers(error):
                raise
            # torch puts a worker's traceback in the text; its last line says what it is.
            last = (str(error).strip().splitlines() or [repr(error)])[-1]
            defaults.take_back(self._loader, f"the workers failed: {last}")
            iterator._shutdown_workers()
            self._before()
            self._instead = defaults._iterator(self._loader)
            return defaults._next(self._instead)
        del iterator._torchpar_begun
        return batch


def _is_of_workers(error: Exception) -> bool:
    """Whether torch says that its workers, or the way to them, failed.

    All else is the script's: what its signal handler raises to end the run comes up here just as well.
    """
    text = str(error)
    begins = ("DataLoader worker", "Too many open files. Communication with the workers", "Pin memory thread exited")
    if isinstance(error, RuntimeError) and text.startswith(begins):
        return True
    # What was raised elsewhere comes in a class of its own kind, with this in its text (torch._utils.ExceptionWrapper).
    return "in DataLoader worker process" in text or "in pin memory thread" in text


def _generators(torch: Any, loader: Any) -> Callable[[], None]:
    """Keeps the state of what a new iterator draws from; returns what sets it back."""
    owners = [torch.default_generator, loader.generator, getattr(loader.sampler, "generator", None)]
    states = [(owner, owner.get_state()) for owner in owners if isinstance(owner, torch.Generator)]

    def set_back() -> None:
        for owner, state in states:
            owner.set_state(state)

    return set_back


def _why_not_fork() -> str | None:
    """Why workers cannot be forked; None if they can, which does not settle the start method of the script."""
    methods = multiprocessing.get_all_start_methods()
    method = multiprocessing.get_start_method(allow_none=True) or methods[0]
    # The first is the default. From Python 3.14 on that is forkserver, which runs the script's first level again in
    # each worker: for workers that the script did not ask for, nobody has made sure that this works, so they fork.
    if method == "fork" or (method == methods[0] and "fork" in methods):
        return None
    return f"the script has set the start method {method}, by which each worker imports torch and the script anew"


def _caller(loader: Any) -> str:
    """file:line of the script's own code that makes the loader, past torch and the classes made from DataLoader."""
    frame: Any = sys._getframe(2)
    first = frame
    while frame:
        code = frame.f_code
        maker = code.co_name == "__init__" and frame.f_locals.get(code.co_varnames[0]) is loader
        if not maker and frame.f_globals.get("__name__", "").partition(".")[0] not in ("torch", "torchpar"):
            return f"{code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return f"{first.f_code.co_filename}:{first.f_lineno}"
