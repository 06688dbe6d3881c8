"""Narrows the facts of a host to what this very process may use: a job without a unit is what the process becomes.

Affinity and control groups are those that a container's runtime, a batch scheduler, a login session or taskset(1) has
left the process in.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts
from torchpar.host.cgroup import Limits, read_own_limits
from torchpar.host.sysfs import Tree


def read_own() -> Limits:
    """Reads the limits of this process: those of its control groups, its affinity and its memory nodes."""
    tree = Tree(Path("/"))
    status = tree.text("proc/self/status") or ""
    text = status.partition("\nMems_allowed_list:")[2].partition("\n")[0].strip()
    try:
        mems = CpuSet.parse(text) or None
    except ValueError:
        mems = None
    return dataclasses.replace(read_own_limits(tree), cpus=CpuSet(os.sched_getaffinity(0)), mems=mems)


def narrow(facts: HostFacts, own: Limits, *, slice_counts: bool) -> HostFacts:
    """Returns the facts of the part of a host that a process with these limits may use.

    `slice_counts`: what is left to torchpar.slice is a limit too, as the administrator's word for all jobs, unless the
    process may use nothing of it.
    """
    cpus = (own.cpus or facts.online_cpus) & facts.online_cpus or facts.allowed_cpus
    mems = (own.mems or facts.allowed_mems) & CpuSet(node.id for node in facts.numa_nodes) or facts.allowed_mems
    quotas = [own.cpu_limit]
    if slice_counts:
        cpus, mems = facts.allowed_cpus & cpus or cpus, facts.allowed_mems & mems or mems
        quotas.append(facts.cpu_limit)
    return dataclasses.replace(
        facts,
        allowed_cpus=cpus,
        allowed_mems=mems,
        cpu_limit=min((quota for quota in quotas if quota is not None), default=None),
        memory_bytes=min(filter(None, (facts.memory_bytes, own.memory_bytes)), default=facts.memory_bytes),
    )
