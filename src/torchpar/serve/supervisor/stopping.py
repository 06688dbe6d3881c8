"""The end of an inference service: SIGTERM, in the steps that DrainDelay= and DrainTimeout= give it, or a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Callable

from torchpar.contract.errors import ExitStatus
from torchpar.contract.job import ServeSettings
from torchpar.contract.journal import Priority, say
from torchpar.contract.notify import Notifier
from torchpar.serve.supervisor.member import Member

# Beyond the drain timeout, which a serving process keeps by itself.
STOP_SECONDS = 5.0
# How long a stop may take after a second SIGTERM.
HURRIED_SECONDS = 1.0
# What is still loading a model is told to say where it is and to end, and is killed after so long. Its own processes do
# the same when it is gone, and have as long again.
LAST_WORDS_SECONDS = 1.0


class Stopping:
    """Stops all processes, and says when they have ended."""

    def __init__(
        self, serve: ServeSettings, members: Sequence[Member], notifier: Notifier, begin: Callable[[], None]
    ) -> None:
        """begin: called when nothing more is to be accepted."""
        self._serve = serve
        self._members = members
        self._notifier = notifier
        self._begin = begin
        self._ended: asyncio.Future[int]
        self.leaving = False  # not ready any more, and answering on, for load balancers to see it
        self.begun = False

    def make_ended(self) -> asyncio.Future[int]:
        """Makes what is done when all have ended, with the service's exit status; call it before anything starts."""
        self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    def stop(self, *, started: bool) -> None:
        """SIGTERM: those that serve answer what they have accepted; once more: at most a second longer.

        With DrainDelay= the first is for them to say that they are not ready; the next, or the end of that time, is
        then as the first without. started: READY=1 was said.
        """
        if self._serve.drain_delay and started and not self.leaving and not self.begun:
            self._leave(self._serve.drain_delay)
            return
        grace = HURRIED_SECONDS if self.begun else float(self._serve.drain_timeout)
        self.begun = True
        self._begin()
        self._notifier.send(STOPPING="1", STATUS=f"answering what was accepted, for {grace:g} s at the most")
        loop = asyncio.get_running_loop()
        for process in self._members:
            if process.ready and process.channel:
                process.stop(grace)
            elif process.child:
                say(
                    f"process {process.number} was still loading its models, and has accepted nothing; it was here:",
                    Priority.WARNING,
                )
                process.child.terminate()
                loop.call_later(LAST_WORDS_SECONDS, process.child.kill)
        loop.call_later(grace + STOP_SECONDS, self._kill)
        if not any(process.child for process in self._members):
            self._finish(ExitStatus.DONE)

    def _leave(self, seconds: int) -> None:
        self.leaving = True
        self._notifier.send(STOPPING="1", STATUS=f"not ready, and taking requests for another {seconds} s")
        for process in self._members:
            if process.ready:
                process.leave()
        asyncio.get_running_loop().call_later(seconds, self._end_delay)

    def _end_delay(self) -> None:
        if not self.begun:
            self.stop(started=True)

    def see_over(self, *, was_ready: bool) -> None:
        """Ends the service with the last of its processes; was_ready: one that has just ended was."""
        if not any(process.child for process in self._members):
            wait = 0.0 if was_ready else LAST_WORDS_SECONDS
            asyncio.get_running_loop().call_later(wait, self._finish, ExitStatus.DONE)

    def fail(self, status: int) -> None:
        """Ends the service at once."""
        self.begun = True
        self._kill()
        self._finish(status)

    def _kill(self) -> None:
        for process in self._members:
            if process.child and process.child.poll() is None:
                process.child.kill()

    def _finish(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(int(status))
