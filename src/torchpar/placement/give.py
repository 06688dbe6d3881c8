"""Gives a claim its cores, with the reason, and with a warning where they are slower ones."""

from __future__ import annotations

from collections.abc import Sequence

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.claims import Claim, Reason
from torchpar.placement.cores import Core, UsableCores
from torchpar.placement.staying import Need


def need(claim: Claim, count: int) -> Need:
    """What a claim needs of the free cores. Where its accelerators are others than before, its old place is no reason
    to stay away from them."""
    near = CpuSet(gpu.numa_node for gpu in claim.gpus if gpu.numa_node is not None)
    moved = near and tuple(gpu.name for gpu in claim.gpus) != claim.held.gpus
    return Need(count, near, CpuSet() if moved else claim.held.cpus, claim.ranks(), claim.by_node())


def give(claim: Claim, cores: tuple[Core, ...], why: str) -> None:
    """Give a claim these cores."""
    claim.cores = cores
    near = ", near its GPUs" if any(gpu.numa_node is not None for gpu in claim.gpus) else ""
    text = f"{why}: {len(cores)} {'core' if len(cores) == 1 else 'cores'} {_where(cores)}{near}"
    claim.reasons.append(Reason("CPUs", str(CpuSet.union(core.cpus for core in cores)), text))


def warn_of_slower(claim: Claim, usable: UsableCores) -> None:
    """Say that a claim had to take slower cores, which the faster ones it has wait for."""
    cores = claim.cores or ()
    slow = set(usable.slow).intersection(cores)
    if slow:
        which = f"{len(slow)} of its {len(cores)} cores" if len(slow) < len(cores) else "all of its cores"
        speed = min(core.capacity for core in slow)
        fewer = "; fewer CPUs may be faster" if len(slow) < len(cores) else ""
        claim.warnings.append(
            f"{claim.who}: {which} {'is' if len(slow) == 1 < len(cores) else 'are'} slower ({speed:.2f} of the "
            f"fastest), as no others are left{fewer}"
        )


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
