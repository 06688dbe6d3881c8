"""torchrun's agent in this process: its flags as this torch knows them, and an end that says which rank ended how.

The agent (torch.distributed.elastic) is the job's own, any version since 1.13. What a version can do is asked of its
own parser, never concluded from its number.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend

from torchpar.contract.journal import Priority, say
from torchpar.runtime.ranks.calm import SIGNALLED, ended, exit_status, stop_calmly, stop_status
from torchpar.runtime.ranks.store import lacks_libuv
from torchpar.runtime.stop import requested

# The first version that knows --monitor-interval as a fraction has 5 s, which is long to notice a dead rank.
COMMON = ("--monitor-interval=0.5", "--no-python")


def run(flags: Sequence[str], command: Sequence[str]) -> int:
    """Runs `command` as ranks until all have ended; returns the exit status, that of the first rank that failed."""
    parser = torchrun.get_args_parser()
    known, unknown = spelled(parser, [*flags, *COMMON])
    for flag in unknown:
        if flag.startswith("--local-addr="):
            continue  # rendezvous has seen to it that torch 1.13 finds the same address by itself
        say(f"torch {torch.__version__} has no torchrun {flag.partition('=')[0]}; it is left out", Priority.WARNING)
    repair_redirects(Std)
    repair_store(c10d_rendezvous_backend, torch.distributed)
    stop_calmly()
    leave(LocalElasticAgent)
    try:
        torchrun.run(parser.parse_args([*known, *command]))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        for number, failure in sorted(error.failures.items()):
            say(f"rank {number} (process {failure.pid}) {ended(failure.exitcode)}", Priority.WARNING)
        return failed_status(first.exitcode)
    except SignalException as signalled:
        if requested():
            return stop_status(getattr(signalled, "statuses", {}))
        say(f"{signalled.sigval.name} has ended the ranks, and nobody had asked for a stop", Priority.WARNING)
        return failed_status(-signalled.sigval)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "torch":
            raise
        # The rendezvous has failed, say. What torch says of it is for people, its traceback is not.
        cause = f": {error.__cause__}" if error.__cause__ else ""
        say(f"torchrun: {type(error).__name__}: {error}{cause}", Priority.WARNING)
        return 1
    return 0


def spelled(parser: Any, flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Spells the flags as this parser does; returns them, and those that it does not know.

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
    """Lets "redirect nothing", torchrun's default, be understood.

    torch 1.13 looks for it among the members of a Flag, where Python 3.11 does not show the one that is zero any more:
    both are Debian 12's, and its torchrun ends with an AttributeError.
    """
    from_str = std.from_str
    if from_str("0") is None:
        std.from_str = staticmethod(lambda text: std.NONE if text == "0" else from_str(text))


def repair_store(*modules: Any) -> None:
    """Lets the hosts' store do without libuv where torch is built without it, in this process and in the ranks.

    torch 2.6 wants it all the same; in Debian 13 it is built without, and its torchrun ends with a
    RendezvousConnectionError. `modules` are those in which the agent finds the class of the store.
    """
    store = modules[0].TCPStore
    if not lacks_libuv(store):
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


def leave(agent: Any) -> None:
    """Lets the agent of a failed host end at once.

    torch 1.13 waits up to 300 s for the agents of the other hosts, and holds the rendezvous' port meanwhile. The others
    have failed too or soon will, and none can begin again before all have ended.
    """
    barrier = agent._exit_barrier

    def _exit_barrier(self: Any) -> None:
        if self._worker_group.state.name != "FAILED":
            barrier(self)

    agent._exit_barrier = _exit_barrier


def failed_status(status: int) -> int:
    """Returns the exit status for a rank that has failed by itself: never that of a stop, as nobody has asked for one.

    SIGTERM may come from elsewhere, from earlyoom for example, and the unit takes 143 for success (SuccessExitStatus=).

    >>> failed_status(78), failed_status(-15), failed_status(143)
    (78, 1, 1)
    """
    number = exit_status(status)
    return 1 if number == SIGNALLED + signal.SIGTERM else number
