"""Says what a claim needs, uses and is given of the cores, with the reason, and with a warning of slower ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.placement.claims import Claim, Decision, Reason
from torchpar.placement.cores import Core, Cores
from torchpar.placement.layout import Need
from torchpar.placement.split import by_node, speed_of, split_alike, split_cores, split_nodes
from torchpar.placement.usable import UsableCores


def need(claim: Claim, count: int) -> Need:
    """Says what a claim needs of the free cores.

    Where its accelerators are others than before, the cores that it had are no reason to stay away from them.
    """
    near = CpuSet(gpu.numa_node for gpu in claim.gpus if gpu.numa_node is not None)
    moved = near and tuple(gpu.name for gpu in claim.gpus) != claim.held.gpus
    return Need(count, near, CpuSet() if moved else claim.held.cpus, claim.ranks(), claim.by_node())


def give(
    claim: Claim, cores: tuple[Core, ...], why: str, more: Iterable[Reason] = (), warnings: Iterable[str] = ()
) -> Decision[Cores]:
    """Gives a claim these cores: the rule that says so is `why`, and there may be `more` reasons."""
    near = ", near its GPUs" if any(gpu.numa_node is not None for gpu in claim.gpus) else ""
    text = f"{why}: {len(cores)} {'core' if len(cores) == 1 else 'cores'} {_where(cores)}{near}"
    reason = Reason("CPUs", str(CpuSet.union(core.cpus for core in cores)), text)
    return Decision(cores, (reason, *more), tuple(warnings))


def used(claim: Claim, cores: Sequence[Core], usable: UsableCores) -> Cores:
    """Finds the cores among some that a claim has a use for; the others are for loader workers and other services.

    That is none that its threads would only wait for, none of further NUMA nodes where the CPU quota lets no more
    threads compute than those of fewer have cores, and of a share by weight none that equal ranks leave over, nor the
    odd one of a further node that slows a process down more than it adds.
    """
    if claim.gpus or len(claim.services) > 1 or not claim.services[0].train() or not cores:
        return tuple(cores)
    ask, quota = claim.ask(), usable.quota

    def split(alike: Sequence[Core]) -> list[list[Core]]:
        return split_nodes(alike, len(alike)) if ask.by_node else split_cores(alike, ask.ranks)

    offered = list(cores)
    parts = split_alike(cores, split, quota)
    if claim.request.kind is CpuRequestKind.AUTO or (quota is not None and quota < len(cores)):
        kept = {*usable.beyond, *usable.spare}
        nodes = sorted(by_node(cores), key=lambda node: (-len(node), sum(core in kept for core in node)))
        for number in range(1, len(nodes)):
            fewer = split_alike([core for node in nodes[:number] for core in node], split, quota)
            if speed_of(fewer, quota) > speed_of(parts, quota) * (1 + 1e-9):
                parts, on_nodes = fewer, {core.numa_node for part in fewer for core in part}
                offered = [core for core in cores if core.numa_node in on_nodes]
    chosen = {core for part in parts for core in part} or set(offered)
    if claim.request.kind is not CpuRequestKind.AUTO or not claim.enabled or not claim.bound():
        slowest = min((core.capacity for core in chosen), default=0.0)
        chosen = {core for core in offered if core.capacity >= slowest}
    return tuple(core for core in cores if core in chosen)


def warn_of_slower(claim: Claim, cores: Sequence[Core], usable: UsableCores) -> list[str]:
    """Says that a claim had to take slower cores, which the faster ones it has wait for."""
    warnings = []
    left = claim.request.count - len(cores)
    if left > 0 and len({core.capacity for core in (*usable.pool, *usable.beyond, *usable.slow)}) == 1:
        warnings.append(
            f"{claim.who}: the CPU quota lets {usable.quota} of its {claim.request.count} cores compute at a time, so "
            f"it has the {len(cores)} that lie together"
        )
    elif left > 0:
        warnings.append(
            f"{claim.who}: {left} of its {claim.request.count} cores {'is' if left == 1 else 'are'} so slow that it is "
            f"faster without; it computes on the {len(cores)} others, and loads data on slower ones"
        )
    slow = set(usable.slow).intersection(cores)
    if slow:
        which = f"{len(slow)} of its {len(cores)} cores" if len(slow) < len(cores) else "all of its cores"
        speed = min(core.capacity for core in slow)
        fewer = "; fewer CPUs may be faster" if len(slow) < len(cores) else ""
        warnings.append(
            f"{claim.who}: {which} {'is' if len(slow) == 1 < len(cores) else 'are'} slower ({speed:.2f} of the "
            f"fastest), as no others are left{fewer}"
        )
    return warnings


def _where(cores: Sequence[Core]) -> str:
    nodes = CpuSet(core.numa_node for core in cores if core.numa_node >= 0)
    packages = {core.package for core in cores}
    complexes = {core.core_complex for core in cores}
    if len(complexes) == 1 and -1 not in complexes and len(nodes) == 1:
        return f"of one L3 group on NUMA node {nodes}"
    if len(nodes) == 1:
        return f"on NUMA node {nodes}"
    if len(nodes) > 1:
        return f"on NUMA nodes {nodes}" + (", in one package" if len(packages) == 1 else "")
    return "of the host"
