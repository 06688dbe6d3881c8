"""torchrun's agent in this process: its flags as this torch knows them, and an end that says which rank ended how.

The agent (torch.distributed.elastic) is the job's own, any version since 1.13. What a version can do is asked of its
own parser, never concluded from its number.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException, Std, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend

from torchpar.runtime.observed import say
from torchpar.runtime.stop import requested

# The first version that knows --monitor-interval as a fraction has 5 s, which is long to notice a dead rank.
COMMON = ("--monitor-interval=0.5", "--no-python")
SIGNALLED = 128  # how shells say that a signal ended a process


class GangStopped(SignalException):  # type: ignore[misc]
    """A stop was asked for, and not every rank ended with status 0.

    As torch's own exception for that it leaves the hosts' rendezvous open: after any other torch closes it, for good
    and for all hosts, and those that are left of an elastic job could not go on.
    """

    def __init__(self, statuses: Mapping[int, int]) -> None:
        """Take the exit status of each rank of this host; negative: ended by this signal."""
        super().__init__("stopped", signal.SIGTERM)
        self.statuses = statuses


def run(flags: Sequence[str], command: Sequence[str]) -> int:
    """Run `command` as ranks until all have ended; the exit status, which is that of the rank that failed first."""
    parser = torchrun.get_args_parser()
    known, unknown = spelled(parser, [*flags, *COMMON])
    for flag in unknown:
        if flag.startswith("--local-addr="):
            continue  # rendezvous has seen to it that torch 1.13 finds the same address by itself
        say(f"torch {torch.__version__} has no torchrun {flag.partition('=')[0]}; it is left out")
    repair_redirects(Std)
    repair_store(c10d_rendezvous_backend, torch.distributed)
    stop_calmly(LocalElasticAgent, SubprocessContext)
    leave(LocalElasticAgent)
    try:
        torchrun.run(parser.parse_args([*known, *command]))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        for number, failure in sorted(error.failures.items()):
            say(f"rank {number} (process {failure.pid}) {ended(failure.exitcode)}")
        return failed_status(first.exitcode)
    except SignalException as signalled:
        if requested():
            return stop_status(getattr(signalled, "statuses", {}))
        say(f"{signalled.sigval.name} has ended the ranks, and nobody had asked for a stop")
        return failed_status(-signalled.sigval)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "torch":
            raise
        # The rendezvous has failed, say. What torch says of it is for people, its traceback is not.
        cause = f": {error.__cause__}" if error.__cause__ else ""
        say(f"torchrun: {type(error).__name__}: {error}{cause}")
        return 1
    return 0


def spelled(parser: Any, flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags as this parser spells them, and those that it does not know.

    torch 1.13 has --nproc_per_node and no other, current versions have --nproc-per-node too, and perhaps only that one
    day.
    """
    known, unknown = [], []
    for flag in flags:
        name, equals, value = flag.partition("=")
        spellings = (name, "--" + name[2:].replace("-", "_"))
        spelling = next((spelling for spelling in spellings if spelling in parser._option_string_actions), None)
        if spelling:
            known.append(spelling + equals + value)
        else:
            unknown.append(flag)
    return known, unknown


def repair_redirects(std: Any) -> None:
    """Let "redirect nothing", torchrun's default, be understood.

    torch 1.13 looks for it among the members of a Flag, where Python 3.11 does not show the one that is zero any more:
    both are Debian 12's, and its torchrun ends with an AttributeError.
    """
    from_str = std.from_str
    if from_str("0") is None:
        std.from_str = staticmethod(lambda text: std.NONE if text == "0" else from_str(text))


def repair_store(*modules: Any) -> None:
    """Let the hosts' store do without libuv where torch is built without it, in this process and in the ranks.

    torch 2.6 wants it all the same; in Debian 13 it is built without, and its torchrun ends with a
    RendezvousConnectionError. `modules` are those in which the agent finds the class of the store.
    """
    store = modules[0].TCPStore
    try:
        store("localhost", 0, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        if "libuv" not in str(error):
            return  # whatever it is, the rendezvous will meet it too, and say so
    else:
        return

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        store.__init__(self, *arguments, **{"use_libuv": False, **named})

    # A class and not a function: the agent asks which kind of store it has.
    without = type("TCPStore", (store,), {"__init__": __init__})
    for module in modules:
        module.TCPStore = without
    # The ranks heed the first variable only where they have a store of their own, which is the second.
    os.environ["USE_LIBUV"] = "0"
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"


def stop_calmly(agent: Any, processes: Any) -> None:
    """Let each rank end by itself while the service is being stopped.

    ExecStop= asks and signals the ranks, and this process too. torch's agent would send SIGTERM to all of them, and
    SIGKILL 30 seconds later, when it has SIGTERM itself and when the first of them has failed; or start them again.
    """
    start, monitor, close = agent._start_workers, agent._monitor_workers, processes.close

    def _start_workers(self: Any, *arguments: Any, **named: Any) -> Any:
        if requested():
            raise GangStopped({})
        started = start(self, *arguments, **named)
        terminate = signal.getsignal(signal.SIGTERM)

        def _terminate(number: int, frame: Any) -> None:
            if not requested():
                terminate(number, frame)  # type: ignore[operator, misc]
            elif None not in (statuses := ends(self._pcontext)).values():
                # Nothing is left to be waited for but the agents of other hosts.
                raise GangStopped(statuses)

        if callable(terminate):
            signal.signal(signal.SIGTERM, _terminate)
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


def ends(processes: Any) -> dict[int, Any]:
    """The exit status of each rank; negative: ended by this signal; None: not ended."""
    return {rank: handler.proc.poll() for rank, handler in processes.subprocess_handlers.items()}


def leave(agent: Any) -> None:
    """Let the agent of a failed host end at once.

    torch 1.13 waits up to 300 s for the agents of the other hosts, and holds the rendezvous' port meanwhile. The others
    have failed too or soon will, and none can begin again before all have ended.
    """
    barrier = agent._exit_barrier

    def _exit_barrier(self: Any) -> None:
        if self._worker_group.state.name != "FAILED":
            barrier(self)

    agent._exit_barrier = _exit_barrier


def stop_status(statuses: Mapping[int, int]) -> int:
    """The exit status after a stop: that of a rank which failed, else that of a process which SIGTERM ended.

    A rank that SIGTERM ended, or that says so (143), has done what it was asked to.
    """
    asked_for = {0, -signal.SIGTERM, SIGNALLED + signal.SIGTERM}
    failed = {rank: status for rank, status in sorted(statuses.items()) if status not in asked_for}
    for rank, status in failed.items():
        say(f"local rank {rank} {ended(status)} when it was stopped")
    return exit_status(next(iter(failed.values()))) if failed else SIGNALLED + signal.SIGTERM


def failed_status(status: int) -> int:
    """The exit status for a rank that has failed by itself: never that of a stop, as nobody has asked for one.

    SIGTERM may come from elsewhere, from earlyoom for example, and the unit takes 143 for success (SuccessExitStatus=).

    >>> failed_status(78), failed_status(-15), failed_status(143)
    (78, 1, 1)
    """
    number = exit_status(status)
    return 1 if number == SIGNALLED + signal.SIGTERM else number


def ended(status: int) -> str:
    """How a process ended, in words.

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
    """The status to exit with, for one that may be a signal.

    >>> exit_status(78), exit_status(-9)
    (78, 137)
    """
    return status if status >= 0 else SIGNALLED - status
