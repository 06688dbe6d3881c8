"""Gives out the slower cores of a host with several kinds, which no service needs that waits for its slowest thread.

Compute threads wait for the slowest of them, so they stay on cores that are alike. Processes of an inference service on
slower cores alone wait for nobody, and loading data needs no such care.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torchpar.conf.services import Service
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.placement.amounts import free_cores
from torchpar.placement.claims import Claim, Decision, Placed, Reason, largest_remainder
from torchpar.placement.cores import Core, Cores
from torchpar.placement.layout import Need, lay_out
from torchpar.placement.quality import LEAST_CORES, speed_on
from torchpar.placement.usable import UsableCores

# How much faster a service must be for slower cores: the plan joins processes for less than a twentieth.
_FASTER = 1.06


def offer_slower(claims: Sequence[Claim], placed: Placed, usable: UsableCores) -> dict[str, Decision[Cores]]:
    """Shares the slower cores that nobody has out among enabled inference services with CPUs=auto, by weight.

    Returns all cores of those that are faster with some.

    Not where another service that is enabled has a use for them: one that trains loads data on them, and those with
    CPUs=shared compute on what is left. Nor under a quota, which the faster cores use up.
    """
    enabled = [claim for claim in claims if claim.enabled]
    alone = all(_infers(claim) and claim.request.kind is not CpuRequestKind.SHARED for claim in enabled)
    autos = [claim for claim in enabled if claim.request.kind is CpuRequestKind.AUTO and not claim.gpus]
    free = free_cores(usable.slow, enabled, placed)
    if not alone or not autos or not free or usable.quota is not None:
        return {}
    counts = largest_remainder(len(free), [claim.weight for claim in autos])
    needs = [Need(count, held=claim.held.cpus) for claim, count in zip(autos, counts, strict=True)]
    offered = {}
    for claim, cores in zip(autos, lay_out(free, needs, usable.distance), strict=True):
        own = placed[claim.name]
        more = _enough(cores)
        if _speed(claim, [*own, *more]) < _FASTER * _speed(claim, own):
            continue
        both = tuple(sorted([*own, *more], key=lambda core: core.cpus.first()))
        cpus = CpuSet.union(core.cpus for core in both)
        slower = CpuSet.union(core.cpus for core in more)
        why = f"with the slower cores {slower}, for processes that no faster one waits for"
        offered[claim.name] = Decision(both, (Reason("CPUs", str(cpus), why),))
    return offered


def _infers(claim: Claim) -> bool:
    return not any(service.train() for service in claim.services)


def _enough(cores: Iterable[Core]) -> list[Core]:
    """Returns the cores of kinds of which a node has enough for a process."""
    places: dict[tuple[int, float], list[Core]] = {}
    for core in cores:
        places.setdefault((core.numa_node, core.capacity), []).append(core)
    return [core for place in places.values() if len(place) >= LEAST_CORES for core in place]


def _speed(claim: Claim, cores: Iterable[Core]) -> float:
    numbers = Counter((core.numa_node, core.capacity) for core in cores)
    return speed_on([(*cell, number) for cell, number in numbers.items()], claim.ask(), None)


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
