"""Tells each process, torchpard and the idle mark what all processes of the service have counted together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Callable

from torchpar.serve.quiet import IdleMark
from torchpar.serve.supervisor.answers import PERIOD, Answers
from torchpar.serve.supervisor.member import Member
from torchpar.serve.supervisor.totals import add_up, to_json
from torchpar.serve.usage import add_usage, past_usage

# How often each process is told what all have counted.
COUNT_SECONDS = 1.0


class Counts:
    """Adds up what the processes count, and keeps what those have counted that ended."""

    def __init__(
        self, members: Sequence[Member], idle: IdleMark, answers: Answers, stops: Callable[[], bool]
    ) -> None:
        """stops: says whether the service stops, in which no process is idle any more."""
        self._members = members
        self._idle = idle
        self._answers = answers
        self._several = len(members) > 1
        self._stops = stops
        self._past: list[list[Any]] = []
        self._past_usage: dict[str, float] = {}

    def share(self) -> None:
        """Tells processes what all have counted from now on: there are several, or were."""
        self._several = True

    def keep(self, member: Member) -> None:
        """Keeps what a process has counted that ended."""
        self._past = to_json(add_up([self._past, [[n, v, values, 0] for n, v, values, _ in member.counters]]))
        member.counters = []
        self._past_usage = add_usage([self._past_usage, past_usage(member.usage)])
        member.usage = {}

    def tell(self, members: Sequence[Member]) -> None:
        """Tells processes what all have counted, those that have ended too, and how many share the limits."""
        if not self._several:
            return
        usage = add_usage([self._past_usage, *(each.usage for each in self._members)])
        counters = to_json(add_up([self._past, *(each.counters for each in self._members)]))
        for member in members:
            if member.channel:
                # First, for the models of a large repository can fill the channel.
                member.channel.send(usage=usage, processes=len(self._members))
                member.count(counters)

    def tell_always(self) -> None:
        """Tells all processes, and whether the service is idle, from now on."""
        self.tell([member for member in self._members if member.ready])
        # Whoever is being started has something to do.
        quiet = [member.quiet if member.ready else 0.0 for member in self._members if not member.out]
        self._idle.tell([] if self._stops() else quiet, time.monotonic())
        asyncio.get_running_loop().call_later(COUNT_SECONDS, self.tell_always)

    def report_always(self) -> None:
        """Tells torchpard how the service answers, from now on."""
        self._answers.tell(add_up([self._past, *(each.counters for each in self._members)]), time.monotonic())
        asyncio.get_running_loop().call_later(PERIOD, self.report_always)
