"""Gives slower cores to loader workers: on a host with several kinds those that no service computes on.

Compute threads wait for the slowest of them, so they stay on cores that are alike; loading data needs no such care.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torchpar.conf.services import Service
from torchpar.contract.cpulist import CpuSet
from torchpar.placement.claims import Claim, Decision, Placed, Reason, largest_remainder
from torchpar.placement.cores import Core, Cores, UsableCores
from torchpar.placement.layout import Need, lay_out


def place_loaders(claims: Sequence[Claim], placed: Placed, usable: UsableCores) -> dict[str, Decision[Cores]]:
    """Shares the free slower cores out among enabled training services by weight; the others get what they leave.

    No two enabled claims get the same core. Services that load no data, or say how many workers do, get no more than
    that. Computed on are those that an enabled service names, and all of them where one has CPUs=shared.
    """
    computing = CpuSet.union(core.cpus for claim in claims if claim.enabled for core in placed[claim.name])
    free = [core for core in usable.slow if core.cpus.isdisjoint(computing)]
    enabled = [claim for claim in claims if claim.enabled and _most(claim, len(free))]
    shares = largest_remainder(len(free), [claim.weight for claim in enabled], least=_owed(enabled, placed, len(free)))
    needs = [
        Need(min(count, _most(claim, count)), _nodes(placed[claim.name]), claim.held.loader_cpus)
        for claim, count in zip(enabled, shares, strict=True)
    ]
    laid_out = lay_out(free, needs, usable.distance)
    given = {claim.name: cores for claim, cores in zip(enabled, laid_out, strict=True)}
    taken = CpuSet.union(core.cpus for cores in laid_out for core in cores)
    left = [core for core in free if core.cpus.isdisjoint(taken)]
    for claim in claims:
        if not claim.enabled:
            own = CpuSet.union(core.cpus for core in placed[claim.name])
            offered = [core for core in left if core.cpus.isdisjoint(own)]
            given[claim.name] = tuple(offered[: _most(claim, len(offered))])
    return {name: _decide(placed[name], cores) for name, cores in given.items() if cores}


def _owed(claims: Sequence[Claim], placed: Placed, offered: int) -> list[int]:
    """Returns the slower cores that are a part of what each claim asked for by number, and that it does not compute on.
    """
    owed: list[int] = []
    for claim in claims:
        missing = max(0, claim.request.count - len(placed[claim.name]))
        owed.append(min(missing, _most(claim, offered), offered - sum(owed)))
    return owed


def _most(claim: Claim, offered: int) -> int:
    """Counts the offered cores that its loader workers could use at the most."""
    return max(_most_of(service, offered) for service in claim.services)


def _most_of(service: Service, offered: int) -> int:
    train = service.train()
    workers = train.loader_workers if train else 0
    if workers is None:
        return offered
    if workers == "off" or workers == 0:
        return 0
    # Ranks=numa and gpu: as many ranks as there turn out to be.
    return min(offered, workers * train.ranks) if train and isinstance(train.ranks, int) else offered


def _nodes(cores: Iterable[Core]) -> CpuSet:
    return CpuSet(core.numa_node for core in cores if core.numa_node >= 0)


def _decide(own: Iterable[Core], cores: tuple[Core, ...]) -> Decision[Cores]:
    cpus = CpuSet.union(core.cpus for core in cores)
    allowed = CpuSet.union(core.cpus for core in own) | cpus
    why = f"its own, and for loader workers the slower cores {cpus}, on which no enabled service computes"
    return Decision(cores, (Reason("AllowedCPUs", str(allowed), why),))
