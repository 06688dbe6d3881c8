"""The requests of one model version that wait for a worker: who is next, and who goes with whom.

Requests of one bucket (equal datatypes, equal shapes but for the rows) can be computed together. Within a bucket and
between buckets the more urgent priority goes first, then the older request. Nothing here locks: the pool does.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from torchpar.serve.engine.fitting import Fit
from torchpar.serve.engine.requests import Done, Request, Ticket

# The rank of priority 0, which asks for none, among the others.
NO_PRIORITY = 101

QUEUED, TAKEN, ENDED = range(3)


class Waiting(Ticket):
    """A request between `submit` and its end."""

    __slots__ = ("request", "done", "served", "rows", "size", "key", "arrived", "order", "state", "on_cancel")

    def __init__(
        self,
        request: Request,
        done: Done,
        served: Any,
        fit: Fit,
        on_cancel: Callable[[Waiting], None],
    ) -> None:
        self.request: Request | None = request
        self.done = done
        self.served = served
        self.rows, self.key, self.size = fit
        self.arrived = time.monotonic()
        self.order: tuple[int, int] = (0, 0)
        self.state = QUEUED
        self.on_cancel = on_cancel

    def cancel(self) -> None:
        """See Ticket."""
        self.on_cancel(self)


class Queue:
    """rows and size (bytes) count what waits; len() counts requests."""

    def __init__(self) -> None:
        self.rows = 0
        self.size = 0
        self.earliest: float | None = None  # no deadline is before this; None: there is none
        self._count = 0
        self._serial = 0
        # (bucket, priority) → its requests; and whose first request is next, of which some are out of date.
        self._lines: dict[tuple[Hashable, int], deque[Waiting]] = {}
        self._heads: list[tuple[tuple[int, int], Any]] = []
        self._ended = 0

    def __len__(self) -> int:
        return self._count

    def put(self, waiting: Waiting) -> None:
        """Adds a request; the caller has made sure that there is room."""
        request = waiting.request
        assert request
        priority = request.priority or NO_PRIORITY
        self._serial += 1
        waiting.order = (priority, self._serial)
        line_key = (waiting.key, priority)
        line = self._lines.get(line_key)
        if line is None:
            line = self._lines[line_key] = deque()
            heapq.heappush(self._heads, (waiting.order, line_key))
        line.append(waiting)
        self._count += 1
        self.rows += waiting.rows
        self.size += waiting.size
        deadline = request.deadline
        if deadline is not None and (self.earliest is None or deadline < self.earliest):
            self.earliest = deadline

    def drop(self, waiting: Waiting) -> None:
        """Takes a queued request out; it keeps its place in the line as an empty shell that `take` passes over."""
        self._leave(waiting, ENDED)
        waiting.request = None
        self._ended += 1
        if self._ended > 64 and self._ended > self._count:
            self._sweep()

    def first_rows(self) -> int:
        """Returns the rows of the request that is next, be it too late or not; 0 where that is not known."""
        line = self._lines[self._heads[0][1]] if self._heads else None
        while line and line[0].state != QUEUED:
            line.popleft()
            self._ended -= 1
        return line[0].rows if line else 0

    def take(self, most: int, now: float, expired: list[Waiting], largest: float = math.inf) -> list[Waiting]:
        """Takes the next requests to compute together: at most `most` rows, but one request at least.

        largest: nothing where the first has more rows.
        Requests whose deadline has passed come back in `expired` and are out of the queue.
        """
        taken: list[Waiting] = []
        rows = 0
        while self._heads:
            _, line_key = self._heads[0]
            key, _ = line_key
            if taken and key != taken[0].key:
                break
            line = self._lines[line_key]
            full = False
            while line:
                waiting = line[0]
                request = waiting.request
                if waiting.state != QUEUED or request is None:
                    line.popleft()
                    self._ended -= 1
                    continue
                if request.deadline is not None and request.deadline <= now:
                    line.popleft()
                    self._leave(waiting, ENDED)
                    expired.append(waiting)
                    continue
                if rows + waiting.rows > (most if taken else largest):
                    full = True
                    break
                line.popleft()
                self._leave(waiting, TAKEN)
                taken.append(waiting)
                rows += waiting.rows
            if full or rows >= most:
                self._refresh(line_key, line)
                break
            self._refresh(line_key, line)
        if not self._count:
            self.earliest = None
        return taken

    def expire(self, now: float) -> list[Waiting]:
        """Takes out every request whose deadline has passed."""
        overdue: list[Waiting] = []
        self.earliest = None
        for line in self._lines.values():
            for waiting in line:
                request = waiting.request
                if waiting.state == QUEUED and request and request.deadline is not None:
                    if request.deadline <= now:
                        overdue.append(waiting)
                    elif self.earliest is None or request.deadline < self.earliest:
                        self.earliest = request.deadline
        for waiting in overdue:
            self._leave(waiting, ENDED)
            self._ended += 1
        self._sweep()
        return overdue

    def all(self) -> list[Waiting]:
        """Takes out everything."""
        waiting = [w for line in self._lines.values() for w in line if w.state == QUEUED]
        for each in waiting:
            self._leave(each, ENDED)
        self._lines.clear()
        self._heads.clear()
        self._ended = 0
        self.earliest = None
        return waiting

    def _leave(self, waiting: Waiting, state: int) -> None:
        waiting.state = state
        self._count -= 1
        self.rows -= waiting.rows
        self.size -= waiting.size

    def _refresh(self, line_key: Any, line: deque[Waiting]) -> None:
        """Puts a line's next request in the place of its first among the heads, or nothing."""
        if line:
            heapq.heapreplace(self._heads, (line[0].order, line_key))
        else:
            heapq.heappop(self._heads)
            del self._lines[line_key]

    def _sweep(self) -> None:
        """Forgets the shells: a client that cancels all it sends must not fill the memory."""
        for line_key, line in list(self._lines.items()):
            kept = deque(waiting for waiting in line if waiting.state == QUEUED)
            if kept:
                self._lines[line_key] = kept
            else:
                del self._lines[line_key]
        self._heads = [(line[0].order, line_key) for line_key, line in self._lines.items()]
        heapq.heapify(self._heads)
        self._ended = 0
