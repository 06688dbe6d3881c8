"""The threads that compute. No timer: an idle one takes what is queued, and while it computes the next batch gathers.

The event loop hands batches to idle threads once a turn, when all requests of that turn are in; a thread that has
finished takes the next batch itself. Answers go back to the event loop with one call for all that are there.

Where one thread computes, batches of cheap models do not go to it: to hand one over and back takes as long as to
compute it, and the event loop has only the same CPU for itself. So they do not wait for other models' batches either.
A request of many rows waits for the thread all the same, at the head of its model's queue, and no other one passes it.

There is one thread more than may compute at the same time. It computes only what all the others would hold up for much
longer than it takes, as where they have batches of a heavy model: the kernel then divides the CPUs fairly.

It is one module, as all of it is held by one lock: who takes what next, and who is idle.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.queue import Waiting
from torchpar.serve.engine.served import Batch, Served
from torchpar.serve.runners.runner import Runner

# A batch that takes this many times as long as measured, and this long at least, does not make progress any more.
STUCK_TIMES = 50.0
STUCK_SECONDS = 60.0

# What takes so much longer than a batch of a steady model lets that pass.
PASSED_TIMES = 8.0

# CPU time of a batch after which its model is not cheap any more, for the event loop stands still meanwhile.
DEAR_SECONDS = 0.005


class _Worker:
    __slots__ = ("slot", "wake", "batch", "since", "thread")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.wake = threading.Lock()
        self.wake.acquire()
        self.batch: Batch | None = None
        self.since: float | None = None
        self.thread: threading.Thread | None = None


class Pool:
    """All methods belong to the event loop's thread.

    finished and expired are called there, with a batch that was computed, and with requests whose deadline passed.
    """

    def __init__(
        self,
        workers: int,
        loop: asyncio.AbstractEventLoop,
        *,
        prepare: Callable[[int], None],
        finished: Callable[[Batch], None],
        expired: Callable[[Served, Sequence[Waiting]], None],
        allowed: Callable[[], int] | None = None,
    ) -> None:
        """prepare is called in each thread before its first batch, with its slot.

        allowed says how many may compute at the moment; None: as many as there are.
        """
        self._loop = loop
        self._prepare = prepare
        self._on_finished = finished
        self._on_expired = expired
        # Guards the queues, the ring and the list of idle workers.
        self._lock = threading.Lock()
        self._ring: deque[Served] = deque()
        self._stopping = False
        self._turn = False  # `_hand_out` is on its way
        self._posted = False  # `_deliver` is on its way
        self._done: deque[Batch] = deque()
        self._overdue: deque[tuple[Served, list[Waiting]]] = deque()
        self._workers = [_Worker(slot) for slot in range(workers)]
        self._idle = list(self._workers)
        self._passing = _Worker(workers)
        self._allowed = allowed or (lambda: workers)
        # Those beyond compute no batch when they have finished theirs.
        self.most = self._team = workers
        self._divides = workers == 1  # cheap models from the others
        self._grows = True  # as far as was tried

    def start(self) -> None:
        """Starts the threads."""
        self._start((*self._workers, self._passing))

    def _start(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            thread = threading.Thread(target=self._work, args=(worker,), name=f"compute-{worker.slot}", daemon=True)
            thread.start()
            worker.thread = thread

    def put(self, served: Served, waiting: Waiting) -> None:
        """Queues a request; the caller has made sure that there is room."""
        with self._lock:
            served.queue.put(waiting)
            if not served.waits:
                served.waits = True
                self._ring.append(served)
            passes = self._may_pass(served)
        if not self._turn and (self._idle or self._divides or passes):
            self._turn = True
            self._loop.call_soon(self._hand_out)

    def drop(self, served: Served, waiting: Waiting) -> bool:
        """Takes a request out of the queue; False if it is not there any more."""
        with self._lock:
            if waiting.state:
                return False
            served.queue.drop(waiting)
        self._look_again()
        return True

    def expire(self, served: Served, now: float) -> list[Waiting]:
        """Takes out the requests whose deadline has passed."""
        with self._lock:
            overdue = served.queue.expire(now)
        self._look_again()
        return overdue

    def empty(self, served: Served) -> list[Waiting]:
        """Takes out everything."""
        with self._lock:
            return served.queue.all()

    def alive(self) -> bool:
        """Says whether every thread is there and none computes a batch for much longer than such a batch takes."""
        now = time.monotonic()
        for worker in (*self._workers, self._passing):
            if worker.thread is None or not worker.thread.is_alive():
                return False
            batch, since = worker.batch, worker.since
            if batch and since is not None:
                usual = batch.served.curve.seconds(batch.rows)
                if now - since > max(STUCK_SECONDS, STUCK_TIMES * usual):
                    return False
        return True

    def stop(self) -> None:
        """Ends the threads; a batch that is being computed is finished first."""
        self._stopping = True
        for worker in (*self._workers, self._passing):
            if worker.wake.locked():
                worker.wake.release()

    def _free(self) -> int:
        """Returns how many of the idle workers may compute; fewer than none where too many do. Needs the lock."""
        return len(self._idle) - len(self._workers) + self.most

    def _follow(self) -> bool:
        """Takes the number of workers that may compute now; says whether there are more than before."""
        before, most = self.most, max(1, self._allowed())
        if most > len(self._workers) and self._grows and not self._stopping:
            self._grow(most)
        with self._lock:
            self.most = min(most, len(self._workers))
        return self.most > before

    def _grow(self, most: int) -> None:
        """Starts further workers, which compute in the slots of the others where a model has no more."""
        # `_passing` has the number after those of the first.
        more = [_Worker(slot + 1) for slot in range(len(self._workers), most)]
        try:
            self._start(more)
        except RuntimeError as error:
            self._grows = False
            more = [worker for worker in more if worker.thread]
            say(f"no more than {len(self._workers) + len(more)} compute threads: {error}", Priority.WARNING)
        with self._lock:
            self._workers += more
            self._idle += more

    def _hand_out(self) -> None:
        self._turn = False
        self._follow()
        if self._divides:
            self._compute_here()
        woken = []
        with self._lock:
            while (free := self._free()) > 0 and not self._stopping:
                served = self._whose_turn()
                if served is None:
                    break
                rows = served.queue.rows
                parts = served.curve.parts(rows, free) if served.batched else 1
                batch = self._next(free - 1, -(-rows // parts))
                if batch:
                    worker = self._idle.pop()
                    worker.batch = batch
                    woken.append(worker)
            if self._passing.batch is None and self._free() <= 0 and not self._stopping:
                self._passing.batch = self._next(0, passing=True)
                if self._passing.batch:
                    woken.append(self._passing)
        for worker in woken:
            worker.wake.release()
        if self._overdue:
            self._deliver()

    def _compute_here(self) -> None:
        """Computes a batch of a cheap model on the event loop's thread; what comes meanwhile is the next one."""
        with self._lock:
            batch = None if self._stopping else self._next(0, here=True)
        if batch is None:
            return
        batch.served.compute(0, batch)
        if batch.cpu_seconds > DEAR_SECONDS:
            batch.served.cheap = False
        batch.served.computes = False
        self._on_finished(batch)
        self._look_again()

    def _look_again(self) -> None:
        """Calls `_hand_out` once more where batches may wait that no thread takes by itself."""
        if self._ring and not self._turn:
            self._turn = True
            self._loop.call_soon(self._hand_out)

    def _next(
        self, others: int, most: int | None = None, *, here: bool = False, passing: bool = False
    ) -> Batch | None:
        """Returns the next batch, of the model whose turn it is; None if none may be computed now. Needs the lock.

        others counts the workers that are idle beside the one that asks. here: of a cheap model, where those are apart,
        and not of many rows. passing: of one that may pass all that is computed now.
        """
        while served := self._whose_turn(here=here, passing=passing):
            self._ring.remove(served)
            queue = served.queue
            cap = served.limit_rows()
            overdue: list[Waiting] = []
            now = time.monotonic()
            largest = _most_here(served) if here else math.inf
            items = queue.take(cap if most is None else min(cap, most), now, overdue, largest)
            if overdue:
                self._overdue.append((served, overdue))
            if queue:
                self._ring.append(served)
            else:
                served.waits = False
            if items:
                served.computes = served.single
                batch = Batch(served, items, now)
                if served.team_from is not None:
                    self._gather_team(batch, others)
                return batch
        return None

    def _whose_turn(self, *, here: bool = False, passing: bool = False) -> Served | None:
        """Returns the first model in the ring that may be computed now; those before it keep their places.

        The worker that computes for one that has one batch at a time looks here again when it is done. here, passing:
        see _next.
        """
        for served in self._ring:
            if not served.computes and (not self._divides or _is_cheap(served) == here):
                if not passing or self._may_pass(served):
                    return served
        return None

    def _may_pass(self, served: Served) -> bool:
        """Says whether all threads have batches of others that take far longer than its next one. Needs the lock."""
        if self._passing.batch or not served.steady or self._free() > 0:
            return False
        least = PASSED_TIMES * served.seconds()
        for batch in (worker.batch for worker in self._workers):
            if batch and (batch.served is served or batch.served.curve.seconds(batch.rows) < least):
                return False
        return True

    def _gather_team(self, batch: Batch, others: int) -> None:
        """Gives all threads to one big request, where the other workers would only look on."""
        least = batch.served.team_from
        if least is not None and len(batch.items) == 1 and batch.rows >= least and not self._ring:
            # Always of as many: sums of other parts may differ in their last digits.
            if others >= self._team - 1:
                batch.team = self._team

    def _work(self, worker: _Worker) -> None:
        self._prepare(worker.slot)
        while True:
            worker.wake.acquire()
            if self._stopping and worker.batch is None:
                return
            batch = worker.batch
            while batch:
                worker.since = batch.taken
                batch.served.compute(worker.slot, batch)
                broken = batch.error is not None and batch.error.status == 503
                runner = batch.served.runner
                self._done.append(batch)
                if broken:
                    self._post()
                    worker.since = None  # a model may take long to be loaded again
                    _mend(runner, worker.slot)
                del runner  # an idle thread would keep a model that was unloaded
                with self._lock:
                    batch.served.computes = False
                    if worker is self._passing:
                        worker.batch = worker.since = batch = None  # `_deliver` looks for more of them
                    else:
                        # This one is not among the idle ones.
                        worker.batch = batch = self._next(self._free()) if self._free() >= 0 else None
                        if batch is None:
                            worker.since = None
                            self._idle.append(worker)
                # Not sooner: `_deliver` looks for what this thread has left to the event loop.
                self._post()
            if self._stopping:
                return

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                # The loop is closed: nobody waits for answers any more.
                self._stopping = True

    def _deliver(self) -> None:
        # First the flag: what is appended from now on posts again.
        self._posted = False
        # No more than there are now: workers may make large answers faster than they are written, and nothing else
        # would have its turn.
        for _ in range(len(self._done)):
            self._on_finished(self._done.popleft())
        for _ in range(len(self._overdue)):
            self._on_expired(*self._overdue.popleft())
        if self._follow() and self._ring and not self._turn:
            self._turn = True
            self._loop.call_soon(self._hand_out)
        self._look_again()


def _is_cheap(served: Served) -> bool:
    """Says whether the next batch is one of a cheap model, and no request of many rows."""
    return served.cheap and served.queue.first_rows() <= _most_here(served)


def _most_here(served: Served) -> int:
    """Returns the rows of the largest request that the event loop may compute."""
    return 2 * served.cap()


def _mend(runner: Runner, slot: int) -> None:
    try:
        runner.mend(slot)
    except Exception as error:  # the thread must go on: it is tried again with the next batch
        say(f"compute worker {slot} cannot be started again: {error}", Priority.ERROR)
