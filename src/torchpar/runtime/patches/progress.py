"""Counts optimizer steps, samples and the time spent waiting for batches; tells torchpard now and then, and at the end.

In the job's process, between two of its steps: it writes its totals in a file of the service's own and waits for
nobody. A rate is for the one who reads two of them; see contract/reports.py.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from torchpar.contract.advice import LOADER_BOUND, Loading, say_loading
from torchpar.contract.job import RankSettings
from torchpar.contract.journal import Priority, say
from torchpar.contract.paths import JOBS
from torchpar.contract.reports import PROGRESS_FILE, Progress, make_slot
from torchpar.runtime import accelerator
from torchpar.runtime.patches.loader import caller
from torchpar.runtime.patches.stand_in import replace_method

# Seconds between two reports.
PERIOD = 2.0
# One for each parameter is not unheard of; a script that makes a new one for every step is bounded.
_MOST_OPTIMIZERS = 10000
# Seconds: a run that is shorter is no measure of anything.
LONG_ENOUGH = 10.0
# Lines about workers that are too many.
_MOST_LINES = 10


def install(torch: Any, rank: RankSettings, between_steps: Callable[[float], None] = lambda now: None) -> None:
    """Counts what this process does from now on. A torch without the places to count at is left as it is.

    `between_steps` is called with the time of the monotonic clock in the thread that makes steps: after each, and
    before each batch is used.
    """
    meter = Meter(torch, rank, between_steps)
    try:
        _count_batches(torch, meter)
        _count_steps(torch, meter)
    except AttributeError as error:
        say(f"steps and samples are not counted: this torch has another inside ({error})", Priority.WARNING)
    atexit.register(meter.end)


class Passed:
    """One iterator of a loader: how many samples each of the batches has that are still to come, in their order."""

    __slots__ = ("alive", "in_process", "pinned", "sampler", "sizes")

    def __init__(self, alive: weakref.ref[Any], *, in_process: bool, pinned: bool) -> None:
        """in_process: it loads a map-style dataset without workers. `alive` forgets this when the iterator goes."""
        self.alive = alive
        self.in_process, self.pinned = in_process, pinned
        self.sampler: object = None
        self.sizes: list[int] = []


class Meter:
    """The totals of this process, and when they are told next.

    Samples and batches count where gradients are recorded: an evaluation is no training. `waited` is the time in
    seconds that any loader let this process wait; `fetching`, `fetched` and `iterators` are the seconds, batches and
    passes of map-style datasets that it loaded by itself; `workers` are those of the last loader that had some.
    """

    def __init__(
        self, torch: Any, rank: RankSettings, between_steps: Callable[[float], None] = lambda now: None
    ) -> None:
        """Counts and tells nothing yet."""
        self._between_steps, self._thread = between_steps, 0
        self.steps = self.samples = self.batches = 0
        self.waited = self.fetching = 0.0
        self.fetched = self.iterators = self.workers = 0
        self.pinned = True
        self._torch, self._rank = torch, rank
        self._began = 0.0
        # By id(), as a class made from torch's may compare as it likes.
        self._passed: dict[int, Passed] = {}
        self._round: set[int] = set()
        self._pid = os.getpid()
        self._path = _progress_path()
        self._reports = 0
        self._next = time.monotonic() + PERIOD
        self._told: set[int] = set()
        # A forked worker counts for itself, and for nobody.
        self._off = False
        os.register_at_fork(after_in_child=self._stop)

    def step(self, optimizer: Any) -> None:
        """Counts a step of an optimizer. Several optimizers that take turns make one step together."""
        if self._off:
            return
        name = id(optimizer)
        if name in self._round or not self._round or len(self._round) >= _MOST_OPTIMIZERS:
            self.steps += 1
            self._round = {name}
        else:
            self._round.add(name)
        now = time.monotonic()
        # A number of threads is one thread's: neither a loading thread's, nor that of the next one that makes steps.
        self._thread = self._thread or threading.get_ident()
        self._go_between_steps(now)
        if now >= self._next:
            self._tell(now)

    def asked(self, iterator: Any, index: Any) -> None:
        """Notes the number of samples of the batch that a loader's iterator will fetch, by its index."""
        if self._off:
            return
        passed = self._passed.get(id(iterator)) or self._begin(iterator)
        sampler = iterator._sampler_iter
        if passed.sampler is not sampler:
            # A new epoch of the same iterator; what was left of the one before is no longer wanted.
            passed.sampler = sampler
            passed.sizes.clear()
        # One index, without automatic batches, may be one sample or a batch that was made before: unknown.
        passed.sizes.append(len(index) if isinstance(index, (list, tuple)) else 0)

    def batch(self, iterator: Any, waited: float, now: float, *, training: bool) -> None:
        """Counts a batch that a loader's iterator has given after so many seconds."""
        if self._off:
            return
        passed = self._passed.get(id(iterator))
        size = passed.sizes.pop(0) if passed and passed.sizes else 0
        self.waited += waited
        if passed and passed.in_process:
            self.fetching += waited
            self.fetched += 1
        if training:
            self.samples += size
            self.batches += 1
            self.pinned = not passed or passed.pinned
        self._go_between_steps(now)
        if now >= self._next:
            self._tell(now)

    def end(self) -> None:
        """Tells the last totals, and says what the run waited for, at the end of this process."""
        if self._off or not self._began:
            return
        now = time.monotonic()
        self._tell(now)
        loading = Loading(
            now - self._began, self.waited, self.fetching, self.fetched, self.iterators, self.workers, self._pageable()
        )
        if loading.seconds >= LONG_ENOUGH and (loading.share >= LOADER_BOUND or loading.pageable):
            rank = self._rank
            say(say_loading(loading, rank.threads, rank.budget, asked=rank.loader_workers > 0))

    def _go_between_steps(self, now: float) -> None:
        if self._thread == threading.get_ident():
            self._between_steps(now)

    def _begin(self, iterator: Any) -> Passed:
        """Notes that a loader begins to load, by this process or with workers."""
        state, workers = iterator.__dict__, iterator._num_workers
        self._began = self._began or time.monotonic()
        # _DatasetKind.Map is 0, in every version.
        alive = weakref.ref(iterator, functools.partial(self._passed.pop, id(iterator)))
        in_process, pinned = not workers and not state.get("_dataset_kind"), bool(state.get("_pin_memory"))
        passed = self._passed[id(iterator)] = Passed(alive, in_process=in_process, pinned=pinned)
        self.iterators += passed.in_process
        if workers:
            self.workers = workers
            self._warn_if_too_many(workers)
        return passed

    def _warn_if_too_many(self, workers: int) -> None:
        threads, budget = self._torch.get_num_threads(), self._rank.budget
        if workers + threads > budget > 0 and workers not in self._told and len(self._told) < _MOST_LINES:
            self._told.add(workers)
            say(
                f"{caller()}: a DataLoader with {workers} workers beside {threads} compute threads is more than the"
                f" {budget} that this rank's CPUs can run: they take turns; Threads= in torchpar.conf, or the call,"
                " makes room"
            )

    def _pageable(self) -> bool:
        """Says whether batches are copied to an accelerator from memory that is not pinned."""
        return self.batches > 0 and not self.pinned and accelerator.in_use(self._torch)

    def _tell(self, now: float) -> None:
        self._next = now + PERIOD
        if not self._path:
            return
        progress = Progress(
            pid=self._pid,
            local_rank=self._rank.local_rank,
            time=now,
            steps=self.steps,
            samples=self.samples,
            batches=self.batches,
            waited=self.waited,
            fetching=self.fetching,
            fetched=self.fetched,
            iterators=self.iterators,
            workers=self.workers,
            pageable=self._pageable(),
        )
        try:
            _write_in_place(self._path, *make_slot(progress, self._reports))
        except (OSError, ValueError):
            # The folder is full or gone, or not to be written from here; it may be later.
            return
        self._reports += 1

    def _stop(self) -> None:
        self._off = True


def _progress_path() -> str:
    """Returns the path of the service's progress file; "" for a process that has no folder of torchpar's."""
    # systemd separates several directories by colons.
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return os.path.join(directory, PROGRESS_FILE) if os.path.dirname(directory) == JOBS else ""


def _write_in_place(path: str, place: int, data: bytes) -> None:
    """Writes in a file, which is made if need be. Raises OSError; never waits, and never follows a link.

    The file is opened each time: a script that closes all descriptors would give this one's number to a file of its
    own. It is not mapped, as a full /run would then end the job (SIGBUS).
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        os.pwrite(descriptor, data, place)
    finally:
        os.close(descriptor)


def _count_steps(torch: Any, meter: Meter) -> None:
    """Has the meter count every step of every optimizer."""
    # torch.optim may have another thing by this name.
    module = importlib.import_module("torch.optim.optimizer")
    compiling = getattr(getattr(torch, "compiler", None), "is_compiling", None)

    class Stepped:
        """The hook of torch's optimizers. cloudpickle takes it along with an optimizer class of the script's own."""

        def __call__(self, optimizer: Any, *_: Any) -> None:
            # Within a step that is compiled, this would be compiled too; then the batches alone tell how far it is.
            if compiling is None or not compiling():
                meter.step(optimizer)

        def __reduce__(self) -> Any:
            # Elsewhere it is something of Python's own that takes anything and does nothing.
            return getattr, ("", "format")

    stepped = Stepped()
    register = getattr(module, "register_optimizer_step_post_hook", None)
    if register is not None:
        register(stepped)
        return
    _wrap_steps(module.Optimizer, stepped)


def _wrap_steps(optimizer_class: Any, stepped: Any) -> None:
    """Does so for a torch without hooks: wraps the step of each class of optimizers when the first one is made."""
    counting: set[type] = set()

    def count(kind: type) -> None:
        if kind in counting:
            return
        counting.add(kind)

        def make(step: Any) -> Any:
            def counted(self: Any, *arguments: Any, **named: Any) -> Any:
                result = step(self, *arguments, **named)
                # Not where a class's own step calls that of the class it is made from: once is enough.
                if type(self) is kind:
                    stepped(self)
                return result

            return counted

        replace_method(kind, "step", make)

    def make(initialize: Any) -> Any:
        def __init__(self: Any, *arguments: Any, **named: Any) -> None:
            initialize(self, *arguments, **named)
            count(type(self))

        return __init__

    replace_method(optimizer_class, "__init__", make)


def _count_batches(torch: Any, meter: Meter) -> None:
    """Times every batch of every loader, and counts its samples by the indices that were asked for.

    So it does not matter what form the batches have. Batches come in the order of their indices.
    """
    from torch.utils.data import dataloader

    clock, recording = time.monotonic, torch.is_grad_enabled

    def make_next_index(next_index: Any) -> Any:
        def _next_index(self: Any) -> Any:
            index = next_index(self)
            meter.asked(self, index)
            return index

        return _next_index

    def make_next(next_batch: Any) -> Any:
        def __next__(self: Any) -> Any:
            begin = clock()
            batch = next_batch(self)
            now = clock()
            meter.batch(self, now - begin, now, training=recording())
            return batch

        return __next__

    replace_method(dataloader._BaseDataLoaderIter, "_next_index", make_next_index)
    replace_method(dataloader._BaseDataLoaderIter, "__next__", make_next)
