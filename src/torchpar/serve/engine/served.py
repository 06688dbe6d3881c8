"""One version of a model in service: what fits it, what waits for it, and how a batch goes through."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.engine.curve import Curve
from torchpar.serve.engine.failures import failure
from torchpar.serve.engine.queue import Queue, Waiting
from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.engine.rows import Part, cut, difference, only
from torchpar.serve.engine.statistics import Statistics
from torchpar.serve.errors import ServeError
from torchpar.serve.models.identity import Files
from torchpar.serve.runners.runner import Runner
from torchpar.serve.tensors import SIZES, Tensor, TensorSpec, byte_size

# Shapes that were seen before need not be looked at again; clients that send ever new ones must not fill the memory.
SHAPES_KEPT, KINDS_KEPT = 512, 4096

# In so many batches at first every answer, and then in one of so many one answer, is computed alone too.
WATCHED, WATCHED_LATER = 64, 256
# What is new is watched again, by so many answers of each batch: so many batches of each shape with each power of two
# of rows, and those that have more rows than any before. After so many of these in all only one in so many may be, and
# one answer: clients that send ever new shapes must not cost more than others.
WATCHED_NEW, WATCHED_NEWS, NEWS_LATER = 4, 256, 1024
ANSWERS_OF_NEWS = 2


class Batch:
    """Requests that are computed together, and what came of it: `outputs` or `error`."""

    __slots__ = ("served", "items", "rows", "taken", "team", "computed", "error", "each")

    def __init__(self, served: Served, items: list[Waiting], taken: float) -> None:
        self.served = served
        self.items = items
        self.rows = sum(waiting.rows for waiting in items)
        self.taken = taken
        self.team = 1  # threads
        self.computed: Computed | None = None
        self.error: ServeError | None = None
        # Where the batch had to be computed one by one after all: an answer for each.
        self.each: list[Computed | ServeError] | None = None


class Served:
    """Everything that one version has; `open` counts requests that were accepted and have no answer yet."""

    def __init__(
        self,
        name: str,
        version: str,
        runner: Runner,
        *,
        outputs: tuple[TensorSpec, ...],
        batched: bool,
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

        single: never two batches at the same time.

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
        self.single = single
        self.computes = False  # of a single one: a batch is on its way; the pool's
        self.curve = curve
        self.team_from = team_from
        self.most = most
        self.statistics = statistics
        self.path = path
        self.files = files
        self.untried = untried
        self.queue = Queue()
        self.open = 0
        self.limit = 64  # requests that may wait
        self.retired = False
        self.waits = False  # is in the pool's ring
        self._batches = itertools.count()  # for all threads
        self._kinds: dict[Any, tuple[int, int]] = {}  # shapes and sizes: times watched, most rows of these
        self._news = 0  # batches that were watched for what is new in them
        self._loose = loose
        self._names = [spec.name for spec in self.inputs]
        self._output_names = frozenset(spec.name for spec in outputs)
        self._shapes: dict[Any, tuple[int, Hashable, tuple[int, ...]]] = {}

    def say(self, what: str, error: BaseException | None = None) -> None:
        """Tell the journal what went wrong with it."""
        say(f"model {self.name} version {self.version}: {what}", Priority.ERROR, error=error)

    def end_batching(self) -> None:
        """Each request alone from now on: an answer in a batch was another than alone, here or in another process."""
        self.ended = True
        self.batched = False

    def note_compared(self, shapes: Sequence[tuple[int, ...]], rows: int) -> None:
        """Batches of rows of these shapes, and of so many at the most, were compared at the start: they are not new.

        Else all that wait longer while one is watched make the next batch larger than any before, and watched too.
        """
        for bits in range((rows - 1).bit_length() + 1):
            self._kinds[tuple(shapes), bits] = WATCHED_NEW, min(1 << bits, rows)

    def cap(self) -> int:
        """Rows in one batch, at the most; one request more than that goes alone."""
        return self.curve.cap if self.batched else 1

    def limit_rows(self) -> int:
        """Rows of the next batch, at the most."""
        return self.curve.limit(self.queue.rows) if self.batched else 1

    def place(self, request: Request) -> tuple[int, Hashable, int]:
        """Rows, bucket and bytes of a request. Raises ServeError 400 or 413 when it does not fit the model."""
        inputs = request.inputs
        # Before the look-up: what is found there is only right for inputs in the model's order.
        if [tensor.name for tensor in inputs] != self._names:
            request.inputs = inputs = self._in_order(inputs)
        if len(inputs) == 1:
            one = inputs[0]
            kind: Any = (one.name, one.datatype, one.shape)
        else:
            kind = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in inputs])
        try:
            found = self._shapes.get(kind)
        except TypeError:
            raise ServeError(400, "a shape is a tuple of whole numbers") from None
        if found is None:
            found = self._look(inputs)
            if len(self._shapes) >= SHAPES_KEPT:
                self._shapes.clear()
            self._shapes[kind] = found
        rows, key, sizes = found
        whole = 0
        for tensor, size in zip(inputs, sizes):
            have = len(tensor.data)
            if have != size:
                what = "elements" if tensor.datatype == "BYTES" else "bytes"
                raise ServeError(
                    400,
                    f"input '{tensor.name}': {tensor.datatype} of shape {list(tensor.shape)} has {size} {what}, "
                    f"not {have}",
                )
            whole += have if tensor.datatype != "BYTES" else have * 4 + sum(map(len, tensor.data))  # type: ignore[arg-type]
        if request.outputs is not None and self._output_names:
            for name in request.outputs:
                if name not in self._output_names:
                    raise ServeError(400, f"model '{self.name}' has no output '{name}'")
        # A bucket of its own: what is not as the model declares is not put together with anything.
        return rows, object() if key is None else key, whole

    def compute(self, slot: int, batch: Batch) -> None:
        """Run a batch in one of the pool's threads; the outcome is in the batch."""
        items = batch.items
        try:
            batch.computed = self._run(slot, items, batch.rows, batch.team)
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
            watched = self._watched(batch)
            if watched:
                self._watch(slot, batch, watched)

    def _watched(self, batch: Batch) -> Sequence[int]:
        """Which answers of a batch are computed alone too."""
        number, every = next(self._batches), range(len(batch.items))
        kind = (batch.items[0].key, (batch.rows - 1).bit_length())
        times, largest = self._kinds.get(kind, (0, 0))
        new = times < WATCHED_NEW or batch.rows > largest
        if number >= WATCHED:
            allowed = self._news < WATCHED_NEWS + number // NEWS_LATER
            if not new or not allowed:
                return () if number % WATCHED_LATER else (random.choice(every),)
            # All would take long for a large batch, while more requests come that make a larger one. What is beyond the
            # rows that a program was made for is at the end.
            chosen = (*random.sample(every[:-1], min(len(every), ANSWERS_OF_NEWS) - 1), every[-1])
            chosen = chosen if self._news < WATCHED_NEWS else chosen[-1:]
            self._news += 1
        else:
            chosen = tuple(every)
        if len(self._kinds) >= KINDS_KEPT:
            self._kinds.clear()
        self._kinds[kind] = times + 1, max(largest, batch.rows)
        return chosen

    def _watch(self, slot: int, batch: Batch, places: Sequence[int]) -> None:
        """Compute some answers of a batch alone, before anybody has them. A difference ends batching for this model."""
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
        """The answer to a request at its place in a batch that holds nothing else; more: see rows.only."""
        request = waiting.request
        assert request
        inputs, place = only(request.inputs, start, rows, more, self.runner.max_batch)
        computed = self.runner.compute(slot, [Column(t.datatype, t.shape, [t.data]) for t in inputs])
        return [cut(tensor, place, place + waiting.rows) for tensor in computed.outputs]

    def answers(self, batch: Batch) -> list[Response | ServeError]:
        """Cut the outputs of a batch into its requests' answers, in the batch's order."""
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

    def _in_order(self, inputs: list[Tensor]) -> list[Tensor]:
        """The inputs in the model's order. Raises ServeError 400 where they are not the model's."""
        names = [tensor.name for tensor in inputs]
        by_name = {tensor.name: tensor for tensor in inputs}
        for name in names:
            if name not in self._names:
                raise ServeError(400, f"model '{self.name}' has no input '{name}'; it has {', '.join(self._names)}")
        if len(by_name) < len(names):
            raise ServeError(400, "an input is there twice")
        for name in self._names:
            if name not in by_name:
                raise ServeError(400, f"input '{name}' of model '{self.name}' is missing")
        return [by_name[name] for name in self._names]

    def _look(self, inputs: Sequence[Tensor]) -> tuple[int, Hashable, tuple[int, ...]]:
        fits = True
        sizes = []
        for tensor, spec in zip(inputs, self.inputs):
            if tensor.datatype not in SIZES:
                raise ServeError(400, f"input '{tensor.name}': there is no datatype {tensor.datatype!r:.20}")
            if not all(type(size) is int and size >= 0 for size in tensor.shape):
                raise ServeError(400, f"input '{tensor.name}': a shape is a list of whole numbers from 0 on")
            if tensor.datatype != spec.datatype or not spec.fits(tensor.shape):
                fits = False
                if not self._loose:
                    raise ServeError(
                        400,
                        f"input '{tensor.name}': {spec} is expected (-1: any), "
                        f"not {tensor.datatype} of shape {list(tensor.shape)}",
                    )
            size = byte_size(tensor.datatype, tensor.shape)
            sizes.append(byte_size("UINT8", tensor.shape) or 0 if size is None else size)
        rows = self._rows(inputs) if fits else None
        if rows is None:
            return 1, None, tuple(sizes)
        if self.most is not None and rows > self.most:
            raise ServeError(413, f"{rows} rows are more than model '{self.name}' takes at once (MaxBatch={self.most})")
        return rows, tuple([tensor.shape[1:] for tensor in inputs]), tuple(sizes)

    def _rows(self, inputs: Sequence[Tensor]) -> int | None:
        """The rows of a request that can be put together with others; None if it cannot."""
        counts = {t.shape[0] if t.shape and spec.shape[:1] == (-1,) else 0 for t, spec in zip(inputs, self.inputs)}
        return counts.pop() or None if len(counts) == 1 else None


def expired(waiting: Waiting) -> ServeError:
    """The answer to a request whose deadline passed in the queue."""
    return ServeError(504, f"the deadline passed after {time.monotonic() - waiting.arrived:.3f} s in the queue")
