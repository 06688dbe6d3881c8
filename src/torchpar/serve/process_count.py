"""Chooses how many processes serve one place best: what a request costs, against what the models compute for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Bytes of models that processes cannot share, as a frozen program's: with more there is one process, whatever a request
# costs. A further process takes about as much by itself.
LARGEST_UNSHARED = 64 << 20

# Of an event loop's time: where more is used, answers wait for it.
BUSY = 0.7


@dataclass(frozen=True)
class Count:
    """Says how many processes there should be, and why; alone: more would be wrong, not only slower."""

    count: int
    why: str
    alone: bool = False


def choose_count(threads: int, request: float, row: float, unshared: int = 0) -> Count:
    """Chooses so many processes that no event loop is busy for more than BUSY of its time while all threads compute.

    threads computes at the same time. request is what one costs beside computing it, and row what the cheapest model
    computes for a row in its best batch, both in seconds of one CPU. unshared: bytes of models that each process would
    have for itself.
    """
    count = max(1, min(threads, math.ceil(threads * request / (request + row) / BUSY)))
    costs = f"a request costs {1e6 * request:.0f} us beside the {1e6 * row:.0f} us in which a row is computed"
    if threads == 1:
        return Count(1, "one thread computes")
    if count == 1:
        return Count(1, f"{costs}: one event loop is enough for {threads} compute threads")
    if unshared > LARGEST_UNSHARED:
        return Count(
            1, f"each of {count} processes would have its own {unshared >> 20} MiB of models, which they cannot share"
        )
    return Count(count, f"{costs}: {count} event loops share {threads} CPUs")
