"""torch's agent while the service is being stopped: it lets each rank end by itself, and ends as they have ended.

The agent (torch.distributed.elastic) is the job's own, any version since 1.13; torchrun's command line is not needed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext

from torchpar.contract.journal import Priority, say
from torchpar.runtime.signals import signals
from torchpar.runtime.stop import requested

SIGNALLED = 128  # how shells say that a signal ended a process


class GangStopped(SignalException):  # type: ignore[misc]
    """A stop was asked for, and not every rank ended with status 0.

    As torch's own exception for that it leaves the hosts' rendezvous open: after any other torch closes it, for good
    and for all hosts, and those that are left of an elastic job could not go on.
    """

    def __init__(self, statuses: Mapping[int, int]) -> None:
        """Takes the exit status of each rank of this host; negative: ended by this signal."""
        super().__init__("stopped", signal.SIGTERM)
        self.statuses = statuses


def run_calmly(main: Callable[..., object], arguments: Sequence[Any]) -> None:
    """Runs torchrun as it is, but for what `stop_calmly` does."""
    stop_calmly()
    try:
        main(*arguments)
    except GangStopped as stopped:
        sys.exit(stop_status(stopped.statuses))


def stop_calmly() -> None:  # noqa: C901 - the states of torch's agent, in its order
    """Lets each rank end by itself while the service is being stopped.

    ExecStop= asks and signals the ranks, and this process too. torch's agent would send SIGTERM to all of them, and
    SIGKILL 30 seconds later, when it has SIGTERM itself and when the first of them has failed; or start them again.
    Where the job has no unit the signal itself asks.
    """
    agent: Any = LocalElasticAgent
    processes: Any = SubprocessContext
    start, monitor, close = agent._start_workers, agent._monitor_workers, processes.close

    def _start_workers(self: Any, *arguments: Any, **named: Any) -> Any:
        if requested():
            raise GangStopped({})
        started = start(self, *arguments, **named)
        terminate = signal.getsignal(signal.SIGTERM)

        def _terminate(number: int, frame: Any) -> None:
            hear(number, started.values())
            if not requested():
                terminate(number, frame)  # type: ignore[operator, misc]
            elif None not in (statuses := ends(self._pcontext)).values():
                # Nothing is left to be waited for but the agents of other hosts.
                raise GangStopped(statuses)

        signals.take()
        if callable(terminate):
            signal.signal(signal.SIGTERM, _terminate)
        if signals.taken:
            signal.signal(signal.SIGUSR1, lambda number, frame: hear(number, started.values()))
        if requested():
            # They may have come too late to be signalled, and have done nothing yet.
            for process in started.values():
                os.kill(process, signal.SIGTERM)
        return started

    def _monitor_workers(self: Any, *arguments: Any, **named: Any) -> Any:
        result = monitor(self, *arguments, **named)
        if result.state.name in ("FAILED", "UNHEALTHY") and requested():
            raise GangStopped(ends(self._pcontext))
        return result

    def _close(self: Any, *arguments: Any, **named: Any) -> Any:
        while None in ends(self).values() and requested():
            time.sleep(0.1)
        return close(self, *arguments, **named)

    agent._start_workers, agent._monitor_workers, processes.close = _start_workers, _monitor_workers, _close


def hear(number: int, ranks: Iterable[int]) -> None:
    """Takes a signal for the request to stop where the job has no unit, and tells the ranks if it came here alone."""
    if signals.taken:
        signals.heard()
    if signals.alone:
        for process in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


def ends(processes: Any) -> dict[int, Any]:
    """Returns the exit status of each rank; negative: ended by this signal; None: not ended."""
    return {rank: handler.proc.poll() for rank, handler in processes.subprocess_handlers.items()}


def stop_status(statuses: Mapping[int, int]) -> int:
    """Returns the exit status after a stop: that of a rank which failed, else that of a process which SIGTERM ended.

    A rank that SIGTERM ended, or that says so (143), has done what it was asked to.
    """
    asked_for = {0, -signal.SIGTERM, SIGNALLED + signal.SIGTERM}
    failed = {rank: status for rank, status in sorted(statuses.items()) if status not in asked_for}
    for rank, status in failed.items():
        say(f"local rank {rank} {ended(status)} when it was stopped", Priority.WARNING)
    return exit_status(next(iter(failed.values()))) if failed else SIGNALLED + signal.SIGTERM


def ended(status: int) -> str:
    """Says in words how a process ended.

    >>> ended(3), ended(-9)
    ('ended with status 3', 'was ended by SIGKILL')
    """
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def exit_status(status: int) -> int:
    """Returns the status to exit with, for one that may be a signal.

    >>> exit_status(78), exit_status(-9)
    (78, 137)
    """
    return status if status >= 0 else SIGNALLED - status
