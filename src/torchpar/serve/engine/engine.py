"""The engine: models in memory, requests in, answers out. The protocols know this and nothing below it.

It is long as it is the one face of all that is below: most methods hand on.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.failures import failure
from torchpar.serve.engine.lifecycle import Exchange, Lifecycle, unshared_bytes
from torchpar.serve.engine.metadata import ModelIndex, ModelMetadata
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.pool import Pool
from torchpar.serve.engine.queue import ENDED, Waiting
from torchpar.serve.engine.repository import Repository
from torchpar.serve.engine.requests import Done, Request, Ticket
from torchpar.serve.engine.served import Batch, Served, expired
from torchpar.serve.engine.statistics import BACKEND, CANCELED, OTHER, REJECTED, Statistics
from torchpar.serve.errors import ServeError
from torchpar.serve.limits import Limits
from torchpar.serve.models.identity import Serves
from torchpar.serve.runners.runner import Runner, ThreadRunner

# A thread that waits for Python's lock gets it after this many seconds; Python's own 5 ms are a batch or more.
SWITCH_INTERVAL = 0.0005

# All that waits for a model in all processes, in bytes: bodies are bounded one by one, their number is, and this bounds
# the product.
QUEUE_BYTES = 1 << 29
# In one of very many processes.
LEAST_QUEUE_BYTES = Limits.body

# From one look through all that waits to the next, at the least: where thousands wait it takes a millisecond, and each
# of them may have its own deadline. Whoever takes a batch leaves out what is too late anyway.
LEAST_SWEEP_SECONDS = 0.05


class Engine:
    """All methods but the constructor belong to the event loop's thread."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._repository = Repository(options)
        self._pool: Pool | None = None
        self._accepting = False
        self._stopped: asyncio.Future[None] | None = None
        self._drain_until = float("inf")
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._lifecycle = Lifecycle(options, self._repository)
        self._queue_bytes = QUEUE_BYTES
        # Called with the time of each request that is accepted.
        self.came: Callable[[float], None] = lambda now: None

    async def start(
        self, like: Serves | None = None, unloaded: Collection[str] = (), unbatched: Collection[str] = ()
    ) -> None:
        """Loads and tries the models; then `ready()` is true.

        like: what other processes serve, of which no version and no file may be another; None: what is on disk, but for
        the models that are unloaded. unbatched: see `end_batching`. Models that cannot be loaded are in the index with
        the reason. Raises ModelError when there is none to serve, and OtherFilesError where it cannot serve what others
        do.
        """
        await self.prepare(like, unloaded, unbatched)
        self.open()

    async def prepare(self, like: Serves | None, unloaded: Collection[str], unbatched: Collection[str]) -> None:
        """Does what `start` does, but for the threads that compute: nothing is answered before `open`."""
        self._loop = asyncio.get_running_loop()
        sys.setswitchinterval(SWITCH_INTERVAL)
        # torch begins each process with the same seed, and all inference processes would draw the same numbers.
        torch.seed()
        if self.options.gpus == 0 and torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        await self._lifecycle.start(like, unloaded)
        self.end_batching(unbatched)

    def open(self, workers: int | None = None, allowed: Callable[[], int] | None = None) -> None:
        """Answers from now on, with so many workers; None: as the options say. allowed: see Pool."""
        if workers is not None:
            self.options = self._lifecycle.options = replace(self.options, workers=workers)
            self._lifecycle.limit_queues()
        self._pool = Pool(
            self.options.slots(),
            self._loop,
            prepare=_prepare,
            finished=self._finished,
            expired=self._expired,
            allowed=allowed and (lambda: self._at_most(allowed())),
        )
        self._pool.start()
        self._accepting = True

    def _at_most(self, workers: int) -> int:
        """Returns how many may compute: no more than were planned where processes, of which there are as many, do."""
        slots = self.options.slots()
        if workers > slots and not all(isinstance(each.runner, ThreadRunner) for each in self._lifecycle.all()):
            return slots
        return workers

    async def share_weights(self, exchange: Exchange) -> None:
        """Shares the weights of all models with other processes: before `open`. See Lifecycle."""
        await self._lifecycle.share_weights(exchange)

    def shared_weights(self) -> list[str]:
        """Returns the names of weights that are shared with other processes."""
        return [served.weights for served in self._lifecycle.all() if served.weights]

    def row_seconds(self) -> float | None:
        """Returns what the cheapest model computes for a row in its best batch; None where threads do not compute all.

        Other processes would have further processes of their own, which hold the models once more. Nor is one known
        for a handler: what it keeps for itself would be there several times.
        """
        served = self._lifecycle.all()
        if not served or not all(_is_program(each.runner) for each in served):
            return None
        return min(each.curve.row_seconds(each.cap()) for each in served)

    def writers(self) -> list[str]:
        """Names the models that write to themselves, and so must be in one process alone."""
        return [served.name for served in self._lifecycle.all() if served.writes]

    def weights_bytes(self) -> int:
        """Returns the size of the weights that this process shares with others, or could."""
        found = [served.runner.weights() for served in self._lifecycle.all()]
        return sum(weights.size for weights in found if weights)

    def unshared_bytes(self) -> int:
        """Returns the size of the models that each process would have for itself: frozen or compiled programs."""
        return sum(unshared_bytes(served) for served in self._lifecycle.all())

    def serves(self) -> Serves:
        """Returns the served versions with the files that they were made of, for other processes to compare."""
        return self._lifecycle.serves()

    def unbatched(self) -> dict[str, Served]:
        """Returns the served versions whose batching was ended by a difference, keyed by name, version and files."""
        return self._lifecycle.unbatched()

    def end_batching(self, keys: Collection[str]) -> None:
        """Serves unbatched what another process has found to answer otherwise; see `unbatched` for the keys.

        Where a key is of other files than those served here, it means nothing.
        """
        self._lifecycle.end_batching(keys)

    async def stop(self, drain_timeout: float) -> None:
        """Takes no more requests, answers those that were accepted, at most drain_timeout seconds; 503 to the rest.

        Called again while it waits, it waits no longer than either call says.
        """
        self._accepting = False
        self._drain_until = min(self._drain_until, time.monotonic() + drain_timeout)
        if self._stopped is None:
            self._stopped = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stopped)

    async def _stop(self) -> None:
        all_served = self._lifecycle.all()
        while any(served.open for served in all_served) and time.monotonic() < self._drain_until:
            await asyncio.sleep(0.005)
        if self._sweep:
            self._sweep.cancel()
        if self._pool:
            for served in all_served:
                for waiting in self._pool.empty(served):
                    self._end(served, waiting, ServeError(503, "the server is stopping"), CANCELED)
            self._pool.stop()
        await self._lifecycle.stop()

    def submit(self, request: Request, done: Done) -> Ticket:
        """Accepts a request; `done` is called on the event loop, later.

        Raises ServeError for what is refused at once.
        """
        if not self._accepting:
            raise ServeError(503, "the server is not ready" if self._pool is None else "the server is stopping", 1.0)
        served = self._repository.get(request.model, request.version)
        try:
            fit = served.fitting.check(request)
        except ServeError:
            served.statistics.failure(OTHER)
            raise
        queue = served.queue
        # One of any size may wait alone.
        if len(queue) >= served.limit or (queue and queue.size + fit.size > self._queue_bytes):
            served.statistics.failure(REJECTED)
            raise ServeError(503, f"the queue of model '{served.name}' is full", self.retry_after())
        waiting = Waiting(request, done, served, fit, self._cancel)
        self.came(waiting.arrived)
        deadline = request.deadline
        if deadline is not None:
            if deadline <= waiting.arrived:
                served.statistics.failure(CANCELED)
                raise ServeError(504, "the deadline had passed when the request came")
            if self._sweep is None or max(deadline, waiting.arrived + LEAST_SWEEP_SECONDS) < self._sweep_at:
                self._sweep_in(deadline)
        served.open += 1
        pool = self._pool
        assert pool
        pool.put(served, waiting)
        return waiting

    def divide_limits(self, processes: int) -> None:
        """Keeps no more waiting than its part of what the service may, which has so many processes, or one body."""
        self._queue_bytes = max(QUEUE_BYTES // processes, LEAST_QUEUE_BYTES)

    def live(self) -> bool:
        """Says whether computing makes progress."""
        return self._pool is not None and self._pool.alive()

    def has_open_requests(self) -> bool:
        """Says whether anything that was accepted is not answered yet."""
        return any(served.open for served in self._lifecycle.all())

    def ready(self, model: str | None = None, version: str = "") -> bool:
        """Says whether a model answers requests, or, where none is named, whether the server does.

        `index` tells of the models that do not.
        """
        if not self._accepting:
            return False
        if model is None:
            return True
        try:
            self._repository.get(model, version)
        except ServeError:
            return False
        return True

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Raises ServeError 404 when there is no such model, 503 when it is not served now."""
        served = self._repository.get(model, version)
        versions = self._repository.versions(model)
        return ModelMetadata(
            model,
            versions,
            served.runner.platform,
            served.inputs,
            served.outputs,
            kind=served.runner.kind,
            instances=1 if served.single else self.options.slots(),
            rowwise=served.rowwise,
            most=served.most,
        )

    def index(self) -> list[ModelIndex]:
        """Returns all versions in the repository, served or not."""
        return self._repository.index()

    async def load(self, model: str) -> None:
        """Loads a model, or loads it again: see Lifecycle.load. Raises ServeError."""
        await self._lifecycle.load(model)

    async def unload(self, model: str) -> None:
        """Stops serving a model; what was accepted is answered. Raises ServeError 404."""
        await self._lifecycle.unload(model)

    async def reload(self, model: str | None = None) -> None:
        """Loads one model, or all there are on disk: see Lifecycle.reload. Raises ServeError."""
        await self._lifecycle.reload(model)

    def statistics(self, model: str | None = None, version: str = "") -> list[tuple[str, str, Statistics]]:
        """Returns (model, version, statistics) of one version, one model or all. Raises ServeError 404 or 503."""
        if model is not None:
            self._repository.get(model, version)
        return [
            (served.name, served.version, served.statistics)
            for served in self._repository.all(model)
            if version in ("", served.version)
        ]

    def counters(self) -> Sequence[tuple[str, str, Statistics, int]]:
        """Returns (model, version, statistics, requests that wait) of all served versions, for /metrics."""
        return [(s.name, s.version, s.statistics, len(s.queue)) for s in self._repository.all()]

    def retry_after(self) -> float:
        """Returns the seconds until the requests that wait now are computed, by the measured times."""
        seconds = 0.0
        for served in self._repository.all():
            cap = served.cap()
            seconds += served.queue.rows / cap * served.curve.seconds(cap)
        return max(seconds / (self._pool.most if self._pool else self.options.slots()), 0.01)

    def _finished(self, batch: Batch) -> None:
        """Tells the clients of a batch that it is computed. Called on the event loop."""
        served = batch.served
        statistics = served.statistics
        cut = time.monotonic()
        try:
            answers = served.answers(batch)
        except Exception as error:  # outputs that cannot be cut: those who wait are answered all the same
            served.say("a batch was not answered", error=error)
            batch.error, batch.computed, batch.each = failure(error), None, None
            answers = served.answers(batch)
        now = time.monotonic()
        items = batch.items
        computed = batch.computed
        if computed is not None and batch.each is None:
            if batch.team == 1:
                served.curve.observe(batch.rows, computed.end - batch.taken)
            statistics.batch(
                arrivals=[waiting.arrived for waiting in items],
                rows=batch.rows,
                times=(batch.taken, computed.ready, computed.end, computed.end + now - cut, now),
            )
        else:
            self._count_one_by_one(served, batch, now)
        served.open -= len(items)
        for waiting, answer in zip(items, answers):
            waiting.state = ENDED
            waiting.request = None
            try:
                waiting.done(answer)
            except Exception as error:
                say("the receiver of an answer failed", Priority.ERROR, error=error)
        if served.retired and not served.open:
            self._lifecycle.close(served)

    def _count_one_by_one(self, served: Served, batch: Batch, now: float) -> None:
        parts: Sequence[Any] = batch.each or [None] * len(batch.items)
        for waiting, part in zip(batch.items, parts):
            if part is None or isinstance(part, ServeError):
                served.statistics.failure(BACKEND, now - waiting.arrived)
            else:
                times = (batch.taken, part.ready, part.end, part.end, now)
                served.statistics.batch(arrivals=[waiting.arrived], rows=waiting.rows, times=times)

    def _expired(self, served: Served, overdue: Sequence[Waiting]) -> None:
        for waiting in overdue:
            self._end(served, waiting, expired(waiting), CANCELED)

    def _cancel(self, waiting: Waiting) -> None:
        served = waiting.served
        assert self._pool
        if self._pool.drop(served, waiting):
            self._end(served, waiting, ServeError(499, "cancelled"), CANCELED)

    def _end(self, served: Served, waiting: Waiting, error: ServeError, reason: str) -> None:
        """Ends a queued request that was not computed."""
        served.statistics.failure(reason, time.monotonic() - waiting.arrived)
        served.open -= 1
        waiting.state = ENDED
        waiting.request = None
        waiting.done(error)
        if served.retired and not served.open:
            self._lifecycle.close(served)

    def _sweep_in(self, deadline: float) -> None:
        if self._sweep:
            self._sweep.cancel()
        now = time.monotonic()
        self._sweep_at = max(deadline, now + LEAST_SWEEP_SECONDS)
        self._sweep = self._loop.call_later(self._sweep_at - now, self._sweep_out)

    def _sweep_out(self) -> None:
        """Answers what has waited too long, though every worker is busy."""
        self._sweep = None
        assert self._pool
        now = time.monotonic()
        earliest: list[float] = []
        for served in self._lifecycle.all():
            if served.queue.earliest is not None and served.queue.earliest <= now:
                self._expired(served, self._pool.expire(served, now))
            if served.queue.earliest is not None:
                earliest.append(served.queue.earliest)
        if earliest:
            self._sweep_in(min(earliest))


def _is_program(runner: Runner) -> bool:
    """Says whether threads compute it and it is no handler, of which nobody knows what it keeps."""
    return isinstance(runner, ThreadRunner) and runner.platform != "python"


def _prepare(slot: int) -> None:
    """Gives a compute thread one thread of its own, and no team. Called in each of them."""
    torch.set_num_threads(1)
