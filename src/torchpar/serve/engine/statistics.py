"""Counts what one version of a model did, for Triton's statistics extension and /metrics.

The event loop writes here, and compute threads that find a difference; it is read at any time.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

EXACT_ROWS = 64

# Why a request failed: Triton's words for nv_inference_request_failure.
REJECTED = "REJECTED"  # queue full
CANCELED = "CANCELED"  # the client went away, or the deadline passed
BACKEND = "BACKEND"  # the model failed, or its process died
OTHER = "OTHER"  # for example tensors that do not fit
REASONS = (REJECTED, CANCELED, BACKEND, OTHER)


class Histogram:
    """Observations by upper bound; counts has one more than bounds, for what is above the last."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts a value, or several that are equal."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def observe_all(self, end: float, starts: Sequence[float]) -> None:
        """Counts the time from each of the starts to one end."""
        bounds = self.bounds
        bucket = bisect_left(bounds, end - min(starts))
        if bucket == bisect_left(bounds, end - max(starts)):
            self.counts[bucket] += len(starts)
        else:
            for start in starts:
                self.counts[bisect_left(bounds, end - start)] += 1
        self.sum += len(starts) * end - sum(starts)


class Statistics:
    """All times are summed in nanoseconds, as Triton does; histograms are in seconds and rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.batches = 0
        self.success = [0, 0]  # requests, ns in all
        self.queue = [0, 0]
        self.input = [0, 0]
        self.infer = [0, 0]
        self.output = [0, 0]
        self.differences = 0  # batches with an answer that was another alone
        self.failed = dict.fromkeys(REASONS, 0)
        self.failed_ns = 0
        self.last = 0.0
        self.by_rows: dict[int, list[int]] = {}  # rows of a batch: batches, ns input, infer, output
        self.queue_seconds = Histogram(SECONDS)
        self.compute_seconds = Histogram(SECONDS)
        self.total_seconds = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)

    def batch(self, *, arrivals: Sequence[float], rows: int, times: tuple[float, float, float, float, float]) -> None:
        """Counts a batch that was answered.

        arrivals: when each of its requests came. times: taken from the queue, input ready, computed, answers cut, now;
        all in time.monotonic() seconds.
        """
        taken, ready, computed, cut, now = times
        count = len(arrivals)
        self.rows += rows
        self.batches += 1
        self.last = time.time()
        spans = [int((end - start) * 1e9) for start, end in ((taken, ready), (ready, computed), (computed, cut))]
        for total, span in zip((self.input, self.infer, self.output), spans):
            total[0] += count
            total[1] += span * count
        # Clients choose the rows: beyond so many they are counted with the next power of two.
        exact = rows if rows <= EXACT_ROWS else 1 << (rows - 1).bit_length()
        sums = self.by_rows.setdefault(exact, [0, 0, 0, 0])
        sums[0] += 1
        for number, span in enumerate(spans, 1):
            sums[number] += span
        together = sum(arrivals)
        waited, whole = count * taken - together, count * now - together
        # The requests of a batch mostly came within one bucket's width: then one look is enough for all.
        for histogram, end in ((self.queue_seconds, taken), (self.total_seconds, now)):
            histogram.observe_all(end, arrivals)
        self.queue[0] += count
        self.queue[1] += int(waited * 1e9)
        self.success[0] += count
        self.success[1] += int(whole * 1e9)
        self.compute_seconds.observe(computed - ready)
        self.batch_rows.observe(rows)

    def failure(self, reason: str, seconds: float = 0.0) -> None:
        """Counts a request that was not answered, and the seconds since it came."""
        self.failed[reason] += 1
        self.failed_ns += int(seconds * 1e9)
