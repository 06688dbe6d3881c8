"""Computes what loader workers would do for a job that waits for its data, from the times of its batches.

The process itself, torchpard and the commands say the same words, so the rule is here and knows nothing of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

# Waiting for data in more than a fifth of the time: more or faster loading would pay.
LOADER_BOUND = 0.2

# Seconds that a batch costs on its way from a worker, in the process that computes and in the worker; and that a
# worker takes to start, for each iterator of its loader. Measured with torch 2.13 on 2 CPUs, batches of up to 1 MiB:
# 0.36 to 0.48 ms of the process's CPU time, 0.9 to 2.2 ms in all, 33 to 39 ms for a worker's start and end.
RECEIVE, SEND, START = 0.0004, 0.0006, 0.035

# Of the time of a step. What gains less is not worth a change.
_WORTH = 0.1


# Seconds of which nothing can be advised: no batch takes less.
SHORTEST = 1e-6


@dataclass(frozen=True)
class Loading:
    """The time of a process: how its `seconds` went.

    `waited`: seconds until any loader gave a batch. `fetching`: the part of them in which the process itself loaded
    `fetched` batches of map-style datasets, in `iterators` passes. `workers`: those of the loader that has some, 0 if
    none has. `pageable`: an accelerator gets the batches from memory that is not pinned.
    """

    seconds: float
    waited: float
    fetching: float
    fetched: int
    iterators: int
    workers: int
    pageable: bool = False

    @property
    def share(self) -> float:
        """The part of the time that went by waiting, from 0 to 1."""
        return min(1.0, self.waited / self.seconds) if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Advice:
    """Advice: so many loader workers, beside so many compute threads, leave this share of waiting.

    The job then gets `speedup` times as far.
    """

    workers: int
    threads: int
    share: float
    speedup: float


def advise(loading: Loading, threads: int, budget: int) -> Advice | None:
    """Finds the number of loader workers with which the job would be fastest; None where none helps much.

    A process that may have `budget` compute threads and workers together gives a thread for each worker that finds no
    room, and is then slower in proportion. Workers load side by side, and while the process computes; they cannot do
    better than the slower of both. Workers that are there already are taken for busy all the time, as they are waited
    for: so the advice is the most that could be of use. A budget of 0 is not known.
    """
    if loading.share < LOADER_BOUND or threads < 1 or loading.seconds < SHORTEST:
        return None
    fetching, batches, passes = loading.fetching, loading.fetched, loading.iterators
    if fetching < loading.waited / 2:
        if not loading.workers:
            return None  # an IterableDataset, whose workers only its own call can ask for
        fetching, batches, passes = loading.workers * loading.seconds, 0, 0
    computing = loading.seconds - loading.waited + batches * RECEIVE
    best: tuple[float, Advice] | None = None
    for workers in range(loading.workers + 1, budget):
        left_threads = min(threads, budget - workers)
        slower = threads / left_threads
        total = max(computing * slower, (fetching + batches * SEND) / workers) + passes * workers * START
        # Fewer processes, if that is as good.
        if best is None or total < 0.97 * best[0]:
            left = max(0.0, 1 - computing * slower / total)
            best = total, Advice(workers, left_threads, round(left, 2), round(loading.seconds / total, 2))
    return best[1] if best and best[0] < (1 - _WORTH) * loading.seconds else None


def say_loading(loading: Loading, threads: int, budget: int, *, asked: bool) -> str:
    """Says the loading and the advice in words; `asked`: LoaderWorkers= in the conf has a number.

    >>> say_loading(Loading(100, 63, 0, 0, 0, 2), 4, 16, asked=True)
    'waited for data 63 % of the time; LoaderWorkers=6 would leave about 0 %'
    """
    advice = advise(loading, threads, budget)
    waited = f"waited for data {100 * loading.share:.0f} % of the time"
    if loading.pageable:
        waited += "; its batches are not pinned: PinMemory=yes lets them be copied while the accelerator computes"
    if loading.share < LOADER_BOUND or not budget:
        return waited
    if advice:
        # Workers that the conf did not ask for are those of the call, and so are none where it did: the call has the
        # last word.
        if bool(loading.workers) is asked:
            key = f"LoaderWorkers={advice.workers}"
            key += "" if asked else f" (num_workers={advice.workers} where the call names it)"
        else:
            key = f"num_workers={advice.workers} in its DataLoader"
        beside = f" with Threads={advice.threads}" if advice.threads < threads else ""
        changes = "" if loading.workers else "; random transforms then draw from the workers' streams"
        return f"{waited}; {key}{beside} would leave about {100 * advice.share:.0f} %{changes}"
    if loading.fetching < loading.waited / 2 and not loading.workers:
        return f"{waited}, in an IterableDataset: only num_workers= in its own call can help"
    return f"{waited}; more loader workers would not help"
