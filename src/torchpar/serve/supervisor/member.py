"""One serving process, as the first process of the service knows it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from typing import Any

from torchpar.contract.journal import Priority, say
from torchpar.serve.models.identity import Serves
from torchpar.serve.supervisor.channel import Channel
from torchpar.serve.supervisor.totals import Sender


class Member:
    """One serving process, of which there is always one: when it ends, another is started in its place."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.child: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self.ready = False
        self.serves: Serves | None = None  # what it answers with, or is about to; None: nothing, or not known
        self.unbatched: set[str] = set()  # of that what answers one by one, as an answer in a batch was another
        self.like: Serves | None = None  # what the others served when it was started
        self.out = ""  # why it is not started before the models are loaded again
        self.going = False  # it was told that it may answer
        self.refused = False  # it was not, as it had loaded something else than the others serve
        self.untried: list[str] = []  # models that answered nothing yet, as nothing could be made up for them
        self.heard = 0.0  # when it last said that it makes progress
        self.told_to_end = False  # as it makes none
        self.reload_due = False  # models were loaded again while it was being started
        self.failures = 0
        self.calls: dict[int, asyncio.Future[str]] = {}  # what it was told to do, and has not done yet
        self.counters: list[list[Any]] = []  # its last, see totals.py
        self.count = Sender(self._send_totals)
        self.usage: dict[str, float] = {}  # its last, see usage.py

    def set(self, setting: dict[str, Any]) -> None:
        """Has it change a setting of its log or traces; one that is not ready is told when it is."""
        if self.ready and self.channel and not self.channel.send(setting=setting):
            say(
                f"process {self.rank} does not listen, and has other log or trace settings than the others",
                Priority.WARNING,
            )

    def _send_totals(self, news: list[list[Any]], names: list[list[str]]) -> bool:
        return self.channel is not None and self.channel.send(totals=news, names=names)


def describe(status: int) -> str:
    """Says how a process ended, by its `subprocess.Popen.returncode`."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
