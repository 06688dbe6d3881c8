"""The serving processes as children of the first: starts them, hears what they say, and notices their ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from torchpar.contract.errors import ExitStatus
from torchpar.contract.journal import Priority, say
from torchpar.serve.supervisor.forks import Forked, next_ended
from torchpar.serve.supervisor.member import Member
from torchpar.serve.supervisor.places import Place

# Within these, what forks the processes of a place has forked one: the first after it has imported torch. Of a service
# that starts, systemd waits for the first.
FORK_SECONDS, FIRST_FORK_SECONDS = 30.0, 300.0


class Children:
    """Knows which process is whose child, whether it is a fork of what forks the processes of a place or not."""

    def __init__(
        self,
        members: Sequence[Member],
        places: Mapping[int, Place],
        take: Callable[[Member, dict[str, Any]], None],
        over: Callable[[Member, int], None],
    ) -> None:
        """take: is given each message of a process. over: is given the status of each that ended."""
        self._members = members
        self._places = places
        self._take = take
        self._over = over

    def start(self, process: Member, known: Mapping[str, Any], *, waits: bool) -> None:
        """Starts one, which finds what is known in its channel. waits: for its first fork too. Raises OSError."""
        self._places[process.rank].start(process, known)
        assert process.channel
        loop = asyncio.get_running_loop()
        loop.add_reader(process.channel, self.hear, process)
        child = process.child
        if isinstance(child, Forked) and (child.quick or waits):
            seconds = FORK_SECONDS if child.quick else FIRST_FORK_SECONDS
            loop.call_later(seconds, self._see_forked, process, child)

    def _see_forked(self, process: Member, child: Forked) -> None:
        """Ends what forks where it has not, as one that is stopped: it is started anew with the next process."""
        if process.child is child and not child.pid and child.poll() is None:
            say(f"what starts process {process.number} makes no progress: SIGKILL", Priority.WARNING)
            child.kill()

    def hear(self, process: Member) -> None:
        """Takes what a process has said."""
        message: dict[str, Any] | None = {}
        while process.channel and (message := process.channel.receive()):
            self._take(process, message)
        if message is None and process.channel:
            asyncio.get_running_loop().remove_reader(process.channel)  # it would be readable for ever
            if isinstance(process.child, Forked) and not process.child.pid:
                # Nobody can wait for one whose number is not known: this is all that will be heard of its end.
                process.child.returncode = ExitStatus.FAILED
                self._over(process, ExitStatus.FAILED)

    def reap(self) -> None:
        """Finds those that have ended: call it at SIGCHLD."""
        for place in self._places.values():
            place.poll()
        for process in list(self._members):
            if isinstance(process.child, Forked) and not process.child.pid:
                self.hear(process)  # its number, before what has ended is looked for by it
            if process.child and process.child.poll() is not None:
                self.gone(process)
        started = [process.child.pid for process in self._members if isinstance(process.child, subprocess.Popen)]
        while (pid := next_ended()) and pid not in started:
            _, status = os.waitpid(pid, 0)
            for process in list(self._members):
                if isinstance(process.child, Forked) and process.child.pid == pid:
                    process.child.returncode = os.waitstatus_to_exitcode(status)
                    self.gone(process)

    def gone(self, process: Member) -> None:
        """Hears the last of one that has ended."""
        self.hear(process)
        if process.child and process.child.returncode is not None:
            self._over(process, process.child.returncode)
