"""Prepares a rank before its script's first line: its own CPUs and memory, its number of threads.

What the unit says holds for all ranks at once, so each makes of it what the plan says of itself. What cannot be set is
a line in the journal and ends no job, but for one: ranks that cannot meet would be other training runs.
"""

from __future__ import annotations

import os
import sys

from torchpar.contract.errors import JobSettingsError, RendezvousError
from torchpar.contract.job import parse_job_environment
from torchpar.contract.journal import Priority, say
from torchpar.runtime import binding, given


def prepare() -> None:
    """Makes this process the rank that LOCAL_RANK says it is; without that variable, the only one."""
    local_rank = os.environ.get("LOCAL_RANK")
    try:
        settings = parse_job_environment(os.environ)
    except JobSettingsError:
        return  # said when torch is imported
    rank = settings and settings.rank(int(local_rank or 0)) if (local_rank or "0").isdecimal() else None
    if not settings or not rank:
        return
    now = given.take(settings, rank, os.environ)
    # The only rank of a service has what systemd gave it, before its first instruction.
    if len(settings.ranks) > 1 or rank.loader_cpus or now.cpus != rank.cpus:
        binding.bind_cpus(now.cpus)
    if len(settings.ranks) > 1:
        binding.bind_memory(rank.numa_nodes, {other.numa_nodes for other in settings.ranks})
        settings.narrow_threads(rank, os.environ)
        if settings.nodes == "1":
            # torchrun may say the host's own name, which leads anywhere or nowhere. --local-addr is not in torch 1.13.
            os.environ["MASTER_ADDR"] = "127.0.0.1"
    if settings.endpoint and "WORLD_SIZE" in os.environ and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        # A scheduler has started the ranks, and no torchrun has told them where they meet.
        from torchpar.runtime.ranks.rendezvous import join

        try:
            join(settings, os.environ)
        except RendezvousError as error:
            say(str(error), Priority.ERROR)
            sys.exit(error.exit_status)
