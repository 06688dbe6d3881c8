"""Binds this process to CPUs and memory nodes, before it has threads: what it starts and allocates inherits both.

It only narrows what systemd has set: where that is something else than planned, by `systemctl edit` for example, the
other has the last word. The memory policy stays in its kind (bind, preferred, interleave); its nodes become the rank's.
"""

from __future__ import annotations

import os

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.journal import Priority, say
from torchpar.contract.mempolicy import BIND, INTERLEAVE, MODE_FLAGS, PREFERRED, read_memory_policy, set_memory_policy


def bind_cpus(planned: str) -> None:
    """Narrows the CPUs of this process to a list such as "0-3,8"."""
    allowed = os.sched_getaffinity(0)
    cpus = set(CpuSet.parse(planned)) & allowed
    if not cpus:
        say(
            f"CPUs {planned} are planned, but the process may only use {CpuSet(allowed)}: it is not bound",
            Priority.WARNING,
        )
    elif cpus != allowed:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            say(f"CPUs {planned}: cannot bind to them: {error.strerror}", Priority.WARNING)


def bind_memory(planned: str, of_all: set[str]) -> None:
    """Narrows the nodes of the memory policy in force to a list such as "0"; `of_all` are the lists of all ranks.

    Where all ranks have the same nodes, and with the policies default and local, there is nothing to do.
    """
    if len(of_all) == 1 or not planned:
        return
    try:
        mode, nodes = read_memory_policy()
        wanted = set(CpuSet.parse(planned))
        if mode & ~MODE_FLAGS == PREFERRED:
            wanted = {min(wanted)}
        elif mode & ~MODE_FLAGS in (BIND, INTERLEAVE):
            # NUMAMask= may name other nodes than those of the CPUs; then that is what was asked for.
            wanted &= nodes
        else:
            return
        if wanted and wanted != nodes:
            set_memory_policy(mode, wanted)
    except OSError as error:
        say(f"memory nodes {planned}: the memory policy stays as it is: {error.strerror}", Priority.WARNING)
