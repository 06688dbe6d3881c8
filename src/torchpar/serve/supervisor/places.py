"""Divides a place of the plan, a NUMA node or a core complex, among inference processes, as its first one measures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import partial
from itertools import count
from typing import Any

from torchpar.contract.job import RankSettings, ServeSettings
from torchpar.serve.supervisor.channel import make_pair
from torchpar.serve.supervisor.forks import ForkServer
from torchpar.serve.supervisor.gauge import make_gauge
from torchpar.serve.supervisor.member import Member

# Weights of so many bytes are loaded by one process after another.
LARGE = 64 << 20


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
        # On CPUs that others use too, a process whose turn comes seldom finds one request, which in a batch costs less.
        self._own = serve.own
        # One that is to be alone gains nothing; drivers of accelerators have their own mind about forks.
        several = self._threads > 1 and not rank.gpus and (serve.own if self._fixed is None else self._fixed > 1)
        self._fork_server = ForkServer(partial(self._popen, "place")) if several else None
        self._divided = False
        self._weights: dict[str, int] = {}  # descriptors, by name
        self._wanted: int | None = None
        self._later: list[Member] = []  # that are started when no other loads

    def first(self) -> Member:
        """Returns the first process."""
        return self._members[0]

    def start(self, process: Member, *messages: Mapping[str, Any]) -> None:
        """Starts one of the processes, which finds the messages in its channel. Raises OSError."""
        process.channel, theirs = make_pair()
        process.gauge, process.passed = make_gauge(), 0
        for message in messages:
            process.channel.send(**message)
        process.channel.send(index=process.index, threads=process.threads, count=self.asks())
        files = [theirs.fileno(), process.gauge.fd]
        with theirs:
            process.child = self._fork_server.fork(files) if self._fork_server else self._popen("process", *files)

    def is_large(self) -> bool:
        """Says whether its processes load one after another: each has a copy of its own until it has loaded."""
        return any(member.size > LARGE for member in self._members)

    def postpone(self, process: Member) -> bool:
        """Keeps a process for later where another loads large models; True where that is so."""
        if process in self._later:
            self._later.remove(process)
        if not self.is_large() or not any(each.loads() for each in self._members if each is not process):
            return False
        self._later.append(process)
        return True

    def take_later(self) -> list[Member]:
        """Returns the processes that were kept for later, to be tried again."""
        later, self._later = self._later, []
        return later

    def poll(self) -> None:
        """Waits for what forks the processes, where it has ended."""
        if self._fork_server:
            self._fork_server.poll()

    def _popen(self, *words: str | int) -> subprocess.Popen[bytes]:
        verb, *files = words
        # The same serve.py as this process's: beside it is the package, which the interpreter need not have installed.
        argv = [sys.executable, os.path.abspath(sys.argv[0]), str(verb), str(self._rank), *map(str, files)]
        return subprocess.Popen(argv, pass_fds=[int(file) for file in files], stdin=subprocess.DEVNULL)

    def exchange(self, process: Member, name: str, fd: int | None) -> None:
        """Gives a process the weights of this name, where there are any; fd: those to be kept, if there are none."""
        if fd is not None and self._weights.setdefault(name, fd) != fd:
            os.close(fd)
        known = self._weights.get(name)
        if process.channel is None:
            return
        if known is None:
            process.channel.send(shelf=name)
        else:
            process.channel.send_file(known, shelf=name)

    def forget_weights(self) -> None:
        """Gives up the weights that no process uses any more; call it when models were loaded."""
        used = set[str]().union(*(member.weights for member in self._members))
        for name in set(self._weights) - used:
            os.close(self._weights.pop(name))

    def leave_out(self, process: Member) -> None:
        """Goes on without a process, which has not come to answer."""
        if process in self._members:
            self._members.remove(process)
            self.settle()

    def settle(self) -> None:
        """Ends what forks the processes, where there is one process that is to be alone."""
        if self._fork_server and self._divided and len(self._members) == 1:
            self._fork_server.close()

    def asks(self) -> bool:
        """Says whether the first process is to measure how many there should be."""
        return self._fixed is None and self._threads > 1 and self._own and not self._divided

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
            self._wanted = max(1, min(self._fixed or (total if self._own else 1), self._threads))

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
        if ending:
            asking.narrow = True
            asking.threads = None  # when it is started again, it has all
        if not self._divided and total > 1:
            numbers = (number for number in count() if number not in taken)
            kept += [Member(next(numbers), self._rank, index) for index in range(1, total)]
            for member in kept:
                # None has two more than another.
                member.threads = self._threads // total + (member.index < self._threads % total)
        changed = ending + [member for member in kept if member not in self._members]
        self._members = kept
        self._divided = True
        self.settle()
        return changed
