"""Exchanges the cores that are kept for the system for others, where a service needs or has just these."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.amounts import free_cores
from torchpar.placement.claims import Claim
from torchpar.placement.cores import Core, UsableCores


def exchangeable(usable: UsableCores, free: Sequence[Core], enabled: Sequence[Claim]) -> list[Core]:
    """Returns the cores kept for the system, where others would do as well: all are alike, and none is given away."""
    cores = [*usable.pool, *usable.beyond, *usable.slow, *usable.spare]
    alike = len({core.capacity for core in cores}) == 1 and not usable.beyond
    spare = free_cores(usable.spare, enabled)
    return spare if alike and len(spare) == len(usable.spare) and set(spare).isdisjoint(free) else []


def keep_unheld(usable: UsableCores, spare: Sequence[Core], free: Sequence[Core], held: CpuSet) -> UsableCores:
    """Keeps cores for the system that no service has now, in place of those that one has; of their nodes if possible.
    """
    taken = [core for core in spare if not core.cpus.isdisjoint(held)]
    nodes = {core.numa_node for core in taken}
    unheld = [core for core in free if core.cpus.isdisjoint(held)]
    unheld.sort(key=lambda core: (core.numa_node not in nodes, core.cpus.first()))
    others = [core for core in spare if core not in taken]
    return keep_others(usable, spare, [*others, *unheld[: len(taken)], *taken][: len(spare)])


def keep_others(usable: UsableCores, spare: Sequence[Core], left: Sequence[Core]) -> UsableCores:
    """Keeps cores that are left for the system, the same ones as before where these are."""
    before = set(spare)
    kept = sorted(left, key=lambda core: (core not in before, core.cpus.first()))[: len(spare)]
    if set(kept) == before:
        return usable
    why = usable.left_out[spare[0].cpus.first()]
    given = CpuSet.union(core.cpus for core in spare)
    left_out = {cpu: text for cpu, text in usable.left_out.items() if cpu not in given}
    left_out.update((cpu, why) for core in kept for cpu in core.cpus)
    pool = sorted({*usable.pool, *spare}.difference(kept), key=lambda core: core.cpus.first())
    return dataclasses.replace(usable, pool=tuple(pool), spare=tuple(kept), left_out=dict(sorted(left_out.items())))
