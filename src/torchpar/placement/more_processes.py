"""Offers slower cores to inference services: processes of slower cores alone wait for nobody, and nobody for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.placement.amounts import free_cores
from torchpar.placement.claims import Claim, Decision, Placed, Reason, largest_remainder
from torchpar.placement.cores import Core, Cores, UsableCores
from torchpar.placement.layout import Need, lay_out
from torchpar.placement.quality import LEAST_CORES, speed_on

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
