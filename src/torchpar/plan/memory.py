"""The NUMA memory policy of a service: where its pages go, and which nodes it may use at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchpar.conf.services import Kind, Service
from torchpar.conf.values import MemoryPolicy, memory_bytes
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.fallback import NUMA_POLICY
from torchpar.facts.topology import HostFacts
from torchpar.placement.claims import Reason
from torchpar.placement.place import Share

# What a process holds that has imported torch 2.13 for CPUs, 237 MB, and room to breathe.
LEAST = 256 * 2**20

# A node is never all free: the rule against binding a service to a node that it fills.
FITS = 0.8


@dataclass(frozen=True)
class PlannedMemory:
    """The policy, its nodes (empty where the policy takes none), and the nodes the cpuset allows."""

    policy: MemoryPolicy
    nodes: CpuSet
    allowed_nodes: CpuSet


def choose_memory_policy(service: Service, share: Share, facts: HostFacts) -> tuple[PlannedMemory, Reason]:
    """Chooses the memory policy of a service, and says why.

    Raises PlacementError when NUMAMask= names a node that the host does not have or may not use.
    """
    settings = service.settings
    existing = CpuSet(node.id for node in facts.numa_nodes if not node.synthetic) & facts.allowed_mems
    # Memory-only nodes (CXL, persistent or GPU memory) are never a target unless named.
    ordinary = CpuSet(node.id for node in facts.numa_nodes if node.cpus) & existing
    own = facts.node_of(share.cpus) & existing
    if settings.numa_mask is not None and not settings.numa_mask <= existing:
        why = f"node {settings.numa_mask - existing} is not there or not allowed; this host has nodes {existing}"
        raise service.refuse("NUMAMask", settings.numa_mask, why)
    policy, nodes, why = settings.numa_policy, settings.numa_mask or own, "as asked for"
    if policy is MemoryPolicy.AUTO:
        if settings.numa_mask is not None:
            policy, why = MemoryPolicy.BIND, "NUMAMask= names the nodes"
        else:
            policy, why = _choose(service, own, ordinary, facts)
    if facts.without.get(service.unit) == NUMA_POLICY:
        policy, why = MemoryPolicy.DEFAULT, f"systemd could not set another at its last start (status {NUMA_POLICY})"
    if not own or policy in (MemoryPolicy.DEFAULT, MemoryPolicy.LOCAL):
        if not own:
            policy, why = MemoryPolicy.DEFAULT, "the kernel shows no NUMA node with these CPUs"
        nodes = CpuSet()
    if policy is MemoryPolicy.PREFERRED and len(nodes) > 1:
        nodes = CpuSet([nodes.first()])
        why += "; preferred takes one node, the first"
    allowed = nodes if policy is MemoryPolicy.BIND else ordinary | nodes
    planned = PlannedMemory(policy, nodes, allowed)
    return planned, Reason("NUMAPolicy", f"{policy.value} {nodes}".strip(), why)


def _choose(service: Service, own: CpuSet, ordinary: CpuSet, facts: HostFacts) -> tuple[MemoryPolicy, str]:
    memory = {node.id: node.mem_bytes for node in facts.numa_nodes}
    limit = service.settings.memory_max and memory_bytes(service.settings.memory_max, facts.memory_bytes)
    if len(own) == 1:
        size = memory[own.first()]
        if limit and size and limit <= FITS * size:
            return MemoryPolicy.BIND, f"MemoryMax={service.settings.memory_max} fits the node's {_gib(size)}"
        if limit and size:
            return MemoryPolicy.PREFERRED, f"MemoryMax={service.settings.memory_max} may fill the node's {_gib(size)}"
        return MemoryPolicy.PREFERRED, "its CPUs are on one node; without MemoryMax= it may need more than the node has"
    largest = max((memory[node] or 0 for node in own), default=0)
    if service.kind is Kind.INFER and limit and limit > largest > 0:
        return MemoryPolicy.INTERLEAVE, f"its CPUs are on {len(own)} nodes and its memory is larger than one of them"
    return MemoryPolicy.LOCAL, f"its CPUs are on {len(own)} nodes; each thread's memory is near where it runs"


def doubt_limits(service: Service, facts: HostFacts) -> Iterator[str]:
    """Yields warnings of MemoryMax= and MemoryHigh= that do what hardly anybody wants."""
    settings, total = service.settings, facts.memory_bytes
    limits = {key: (text, memory_bytes(text, total)) for key, text in sorted(settings.memory_limits().items())}
    for key, (text, limit) in limits.items():
        where = f"{service.origin(key)}: {service.section} {key}={text}"
        if limit is not None and total and limit > total:
            yield f"{where}: is above the {_gib(total)} that this host has, and so limits nothing"
        if limit is not None and limit < LEAST:
            does = "is killed" if key == "MemoryMax" else "is slowed down without end"
            yield f"{where}: to import torch alone takes about {LEAST >> 20} MiB; the service {does} before it computes"
    high, most = (limits.get(key, ("", None))[1] for key in ("MemoryHigh", "MemoryMax"))
    if high is not None and most is not None and high > most:
        yield (
            f"{service.origin('MemoryHigh')}: {service.section} MemoryHigh={settings.memory_high}: is above "
            f"MemoryMax={settings.memory_max}, so the service is killed before it is slowed down; set it below"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
