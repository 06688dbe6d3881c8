"""One serving process, as the first process of the service knows it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from torchpar.contract.journal import Priority, say
from torchpar.serve.models.identity import Serves
from torchpar.serve.supervisor.channel import Channel
from torchpar.serve.supervisor.forks import Forked
from torchpar.serve.supervisor.gauge import Gauge
from torchpar.serve.supervisor.totals import Sender

# Until a process whose channel is full is told once more.
_FULL_SECONDS = 0.05
# What loads for longer hangs, as far as others are concerned that wait for it.
LOADING_SECONDS = 600.0


class Member:
    """One serving process, of which there is always one: when it ends, another is started in its place.

    number is its own, in what is said of it. rank is its place's in the plan, of which it is the index-th process, and
    threads is how many compute in it (None: as planned for the place).
    """

    def __init__(self, number: int, rank: int, index: int = 0, threads: int | None = None) -> None:
        self.number = number
        self.rank = rank
        self.index = index
        self.threads = threads
        self.retiring = False  # it answers what it has accepted, and nobody takes its place
        self.narrow = False  # it computes in a part of its place, and no other in the rest
        self.gauge: Gauge | None = None
        self.passed = 0  # connections
        self.last_passed = 0  # the number of the latest, among those of all processes
        self.child: subprocess.Popen[bytes] | Forked | None = None
        self.channel: Channel | None = None
        self.begun = 0.0  # when it was started
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
        self.hung = False  # it loads models, and for too long: nobody waits for it any more
        self.reload_due = False  # models were loaded again while it was being started
        self.failures = 0
        self.calls: dict[int, asyncio.Future[str]] = {}  # what it was told to do, and has not done yet
        self.counters: list[list[Any]] = []  # its last, see totals.py
        self.count = Sender(self._send_totals)
        self.weights: set[str] = set()  # that it shares with others of its place
        self.quiet = 0.0  # seconds without a request
        self.size = 0  # of the weights that it shares, or could, in bytes
        self.usage: dict[str, float] = {}  # its last, see usage.py

    def loads(self) -> bool:
        """Says whether it is being started, and not for long: what it loads it has for itself yet."""
        return self.child is not None and not self.ready and time.monotonic() - self.begun < LOADING_SECONDS

    def has_to_do(self) -> tuple[int, int]:
        """Orders processes by what they have to do: connections, also those on their way; who waited longer first."""
        waiting = self.passed - self.gauge.taken if self.gauge else 0
        return (self.gauge.load if self.gauge else 0) + waiting, self.last_passed

    def pass_connection(self, sock: socket.socket, protocol: str, peer: Any, number: int) -> bool:
        """Has it serve a connection; False if it does not listen. number: of the connection."""
        if self.channel is None or not self.channel.send_file(sock.fileno(), connection=protocol, peer=peer):
            return False
        self.passed += 1
        self.last_passed = number
        return True

    def stop(self, seconds: float) -> None:
        """Has it end within so many seconds."""
        end = asyncio.get_running_loop().time() + seconds
        self.insist(lambda: {"stop": max(0.0, end - asyncio.get_running_loop().time())})

    def leave(self) -> None:
        """Has it say that it is not ready, and answer on."""
        self.insist(lambda: {"leave": True})

    def insist(self, make: Callable[[], dict[str, Any]]) -> None:
        """Tells it what `make` returns then, where its channel is full: when it has read of it."""
        self._send_until_taken(self.channel, make)

    def _send_until_taken(self, channel: Channel | None, make: Callable[[], dict[str, Any]]) -> None:
        if channel and channel is self.channel and not channel.send(**make()):
            asyncio.get_running_loop().call_later(_FULL_SECONDS, self._send_until_taken, channel, make)

    def give_up(self) -> None:
        """Closes what the process was talked to through."""
        for each in (self.channel, self.gauge):
            if each:
                each.close()
        self.channel = self.gauge = None

    def set(self, setting: dict[str, Any]) -> None:
        """Has it change a setting of its log or traces; one that is not ready is told when it is."""
        if self.ready and self.channel and not self.channel.send(setting=setting):
            say(
                f"process {self.number} does not listen, and has other log or trace settings than the others",
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
