"""Divides a place of the plan, a NUMA node or a core complex, among inference processes, as its first one measures."""

from __future__ import annotations

from collections.abc import Collection
from itertools import count

from torchpar.contract.job import RankSettings, ServeSettings
from torchpar.serve.supervisor.member import Member


class Place:
    """Knows the processes of one place. The first of them is always there, and has the place's number in the plan.

    Where the conf leaves their number open, the first one measures it when it has loaded the models, before anybody is
    answered. It holds until the service is started again, but for models that write to themselves: those are in one
    process alone, whenever they are loaded.
    """

    def __init__(self, rank: RankSettings, serve: ServeSettings) -> None:
        self._rank = rank.local_rank
        # Batches that are computed at the same time.
        self._threads = serve.workers or rank.threads
        self._fixed = serve.processes
        self._members = [Member(rank.local_rank, rank.local_rank)]
        self._divided = False
        self._wanted: int | None = None

    def first(self) -> Member:
        """Returns the first process."""
        return self._members[0]

    def asks(self) -> bool:
        """Says whether the first process is to measure how many there should be."""
        return self._fixed is None and self._threads > 1 and not self._divided

    def parts(self, process: Member) -> dict[str, int]:
        """Returns what a process must know of its part of the place, where it is not the whole."""
        if process.threads is None:
            return {}
        return {"threads": process.threads, "processes": len(self._members)}

    def measured(self, process: Member, total: int, *, alone: bool) -> None:
        """Takes what the first process has measured; alone: it has a model that may be in one process only."""
        if process.index:
            return
        if alone:
            self._wanted = 1
        elif not self._divided:
            self._wanted = max(1, min(self._fixed or total, self._threads))

    def divide(self, asking: Member, taken: Collection[int]) -> list[Member]:
        """Returns the processes that are to be started, and those that are to end, which are marked as retiring.

        asking: one whose models are loaded. taken: the numbers of processes that there are.
        """
        if asking.index or self._wanted is None:
            return []
        total, self._wanted = self._wanted, None
        kept, ending = self._members[:total], self._members[total:]
        for member in ending:
            member.retiring = True
        if not self._divided and total > 1:
            numbers = (number for number in count() if number not in taken)
            kept += [Member(next(numbers), self._rank, index) for index in range(1, total)]
            for member in kept:
                # None has two more than another.
                member.threads = self._threads // total + (member.index < self._threads % total)
        changed = ending + [member for member in kept if member not in self._members]
        self._members = kept
        self._divided = True
        return changed
