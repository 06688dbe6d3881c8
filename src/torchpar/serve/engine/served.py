"""One version of a model in service: what waits for it, and how a batch goes through it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.engine.curve import Curve
from torchpar.serve.engine.failures import failure
from torchpar.serve.engine.fitting import Fitting
from torchpar.serve.engine.queue import Queue, Waiting
from torchpar.serve.engine.requests import Response
from torchpar.serve.engine.rows import Part, cut, difference, only
from torchpar.serve.engine.statistics import Statistics
from torchpar.serve.engine.watching import Watch
from torchpar.serve.errors import ServeError
from torchpar.serve.models.identity import Files
from torchpar.serve.runners.runner import Runner
from torchpar.serve.tensors import Tensor, TensorSpec

# What a batch of a cheap model may take: the event loop may stand still for so long.
CHEAP_SECONDS = 0.002


class Batch:
    """Requests that are computed together, and what came of it: `outputs` or `error`."""

    __slots__ = ("served", "items", "rows", "taken", "team", "cpu_seconds", "computed", "error", "each")

    def __init__(self, served: Served, items: list[Waiting], taken: float) -> None:
        self.served = served
        self.items = items
        self.rows = sum(waiting.rows for waiting in items)
        self.taken = taken
        self.team = 1  # threads
        # Of the whole batch on its thread, without what is computed once more of it: that gets rare.
        self.cpu_seconds = 0.0
        self.computed: Computed | None = None
        self.error: ServeError | None = None
        # Where the batch had to be computed one by one after all: an answer for each.
        self.each: list[Computed | ServeError] | None = None


class Served:
    """Everything that one version has; `open` counts requests that were accepted and have no answer yet."""

    def __init__(  # noqa: PLR0913 - what a version is made of, put together in one place
        self,
        name: str,
        version: str,
        runner: Runner,
        *,
        outputs: tuple[TensorSpec, ...],
        batched: bool,
        writes: bool = False,
        single: bool = False,
        loose: bool,
        curve: Curve,
        team_from: int | None = None,
        most: int | None,
        statistics: Statistics,
        path: str,
        files: Files,
        untried: str = "",
    ) -> None:
        """most: MaxBatch, in rows. loose: the inputs' shapes are guesses, and requests may have others.

        writes: it writes to itself when it runs. single: never two batches at the same time.

        team_from: a request of so many rows that is alone is sooner done by all threads; None: none is.
        files: what it was made of. untried: why it was not tried before it serves.
        """
        self.name = name
        self.version = version
        self.runner = runner
        self.inputs = runner.inputs
        self.outputs = outputs
        self.rowwise = batched  # as it was found at load; batching may end later, and the configuration stays
        self.batched = batched
        self.ended = False  # batching, at a difference
        self.writes = writes
        self.single = single
        self.computes = False  # of a single one: a batch is on its way; the pool's
        self.curve = curve
        self.team_from = team_from
        self.most = most
        self.statistics = statistics
        self.path = path
        self.files = files
        self.untried = untried
        self.weights = ""  # by what name it shares them with other processes
        # A batch of it is computed as soon as it is handed to another thread.
        self.steady = runner.is_steady()
        self.cheap = self.steady and curve.seconds(self.cap()) <= CHEAP_SECONDS
        self.queue = Queue()
        self.open = 0
        self.limit = 64  # requests that may wait
        self.retired = False
        self.waits = False  # is in the pool's ring
        self.watch = Watch()
        self.fitting = Fitting(name, self.inputs, outputs, loose=loose, most=most)

    def say(self, what: str, error: BaseException | None = None) -> None:
        """Tells the journal what went wrong with it."""
        say(f"model {self.name} version {self.version}: {what}", Priority.ERROR, error=error)

    def end_batching(self) -> None:
        """Computes each request alone from now on: an answer in a batch differed from the one alone."""
        self.ended = True
        self.batched = False

    def cap(self) -> int:
        """Returns the most rows that one batch may have; a single request with more goes alone."""
        return self.curve.cap if self.batched else 1

    def limit_rows(self) -> int:
        """Returns the most rows that the next batch may have."""
        return self.curve.limit(self.queue.rows) if self.batched else 1

    def seconds(self) -> float:
        """Returns the seconds that the next batch will take. Needs the lock of the pool, as the queue does."""
        return self.curve.seconds(max(1, self.queue.first_rows(), min(self.queue.rows, self.cap())))

    def compute(self, slot: int, batch: Batch) -> None:
        """Runs a batch in one of the pool's threads; the outcome is in the batch."""
        items = batch.items
        began = time.thread_time()
        try:
            try:
                batch.computed = self._run(slot, items, batch.rows, batch.team)
            finally:
                batch.cpu_seconds = time.thread_time() - began
        except ServeError as error:
            if error.status == 503 or len(items) == 1:
                batch.error = error
                return
            # One request's values may be what the model cannot stand: the others must not pay for it.
            batch.each = self._one_by_one(slot, items)
            return
        if len(items) > 1:
            if not self.batched:  # another batch ended this while this one was computed
                batch.each = self._one_by_one(slot, items)
                return
            for tensor in batch.computed.outputs:
                if not tensor.shape or tensor.shape[0] != batch.rows:
                    self.statistics.differences += 1
                    if self.batched:
                        found = f"output '{tensor.name}' has shape {list(tensor.shape)} for {batch.rows} rows"
                        self.say(f"{found}: served unbatched from now on")
                    self.end_batching()
                    batch.each = self._one_by_one(slot, items)
                    return
            watched = self.watch.choose(len(items), items[0].key, batch.rows)
            if watched:
                self._watch(slot, batch, watched)

    def _watch(self, slot: int, batch: Batch, places: Sequence[int]) -> None:
        """Computes some answers of a batch alone, before anybody has them. A difference ends batching of this model."""
        items, computed = batch.items, batch.computed
        assert computed
        row, parts = 0, []
        try:
            for i, waiting in enumerate(items):
                start, row = row, row + waiting.rows
                if i in places:
                    alone = self._run(slot, [waiting], waiting.rows).outputs
                    answer = [cut(tensor, start, row) for tensor in computed.outputs]
                    parts.append(Part(alone, answer, partial(self._only, slot, waiting, start, batch.rows)))
            reason = difference(parts, computed.outputs, self.runner.kind)
        except ServeError as error:
            reason = f"it fails alone: {error.message}"
            if error.status == 503:
                # That the worker died tells nothing of the model; nor is there more than the batch's own answer.
                self.runner.mend(slot)
                batch.each = self._one_by_one(slot, items)
                return
        if reason:
            if self.batched:
                self.say(f"in a batch of {batch.rows} rows {reason}: served unbatched from now on")
            self.end_batching()
            self.statistics.differences += 1
            batch.each = self._one_by_one(slot, items)

    def _only(self, slot: int, waiting: Waiting, start: int, rows: int, more: int) -> list[Tensor]:
        """Computes a request at its place in a batch that holds nothing else; more: see rows.only."""
        request = waiting.request
        assert request
        inputs, start_row = only(request.inputs, start, rows, more, self.runner.max_batch)
        computed = self.runner.compute(slot, [Column(t.datatype, t.shape, [t.data]) for t in inputs])
        return [cut(tensor, start_row, start_row + waiting.rows) for tensor in computed.outputs]

    def answers(self, batch: Batch) -> list[Response | ServeError]:
        """Cuts the outputs of a batch into its requests' answers, in the batch's order."""
        if batch.error is not None:
            return [batch.error] * len(batch.items)
        if batch.each is not None:
            return [
                part if isinstance(part, ServeError) else self._answer(waiting, part.outputs)
                for waiting, part in zip(batch.items, batch.each)
            ]
        assert batch.computed
        outputs = batch.computed.outputs
        if len(batch.items) == 1:
            return [self._answer(batch.items[0], outputs)]
        cuts = []
        for tensor in outputs:
            tail = tensor.shape[1:]
            data: Any = tensor.data if isinstance(tensor.data, list) else memoryview(tensor.data)
            cuts.append((tensor.name, tensor.datatype, tail, data, len(data) // batch.rows))
        found: list[Response | ServeError] = []
        row = 0
        for waiting in batch.items:
            end = row + waiting.rows
            parts = [
                Tensor(name, datatype, (waiting.rows, *tail), data[row * size : end * size])
                for name, datatype, tail, data, size in cuts
            ]
            found.append(self._answer(waiting, parts))
            row = end
        return found

    def _run(self, slot: int, items: Sequence[Waiting], rows: int, team: int = 1) -> Computed:
        requests: list[Any] = [waiting.request for waiting in items]
        first = requests[0].inputs
        if len(requests) == 1:
            columns = [Column(t.datatype, t.shape, (t.data,)) for t in first]
        else:
            columns = [
                Column(tensor.datatype, (rows, *tensor.shape[1:]), [request.inputs[i].data for request in requests])
                for i, tensor in enumerate(first)
            ]
        try:
            return self.runner.compute(slot, columns, team)
        except ServeError:
            raise
        except Exception as error:
            # No memory for what a request asks, data that is not what it says: the worker must go on.
            self.say("a batch was not computed", error=error)
            raise failure(error) from error

    def _one_by_one(self, slot: int, items: Sequence[Waiting]) -> list[Computed | ServeError]:
        found: list[Computed | ServeError] = []
        for waiting in items:
            try:
                found.append(self._run(slot, [waiting], waiting.rows))
            except ServeError as error:
                found.append(error)
                if error.status == 503:
                    self.runner.mend(slot)
        return found

    def _answer(self, waiting: Waiting, outputs: list[Tensor]) -> Response | ServeError:
        request = waiting.request
        assert request
        if request.outputs is not None:
            by_name = {tensor.name: tensor for tensor in outputs}
            for name in request.outputs:
                if name not in by_name:
                    return ServeError(400, f"model '{self.name}' has no output '{name}'")
            outputs = [by_name[name] for name in request.outputs]
        return Response(self.name, self.version, request.id, outputs)

def expired(waiting: Waiting) -> ServeError:
    """Makes the answer to a request whose deadline passed in the queue."""
    return ServeError(504, f"the deadline passed after {time.monotonic() - waiting.arrived:.3f} s in the queue")
