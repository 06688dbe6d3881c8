"""Cores to services: who gets which, on the whole host at once.

Explicit lists come first, then counts, then the enabled auto claims share what is
left by weight; claims that are not enabled hold nothing and get what the enabled ones leave. Each decision leaves a
reason. How many cores a claim gets depends on the conf and the host alone; where they are, also on what is in force.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torchpar.conf.services import Config
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts, PciDevice
from torchpar.placement.accelerators import place_gpus
from torchpar.placement.claims import Claim, Reason, largest_remainder, make_claims
from torchpar.placement.cores import Core, UsableCores, find_usable_cores, node_distance
from torchpar.placement.loader_cores import place_loaders
from torchpar.placement.named import place_explicit
from torchpar.placement.staying import Need, lay_out


@dataclass(frozen=True)
class Share:
    """What one service gets of the host: cores to compute on, and slower ones for its loader workers.

    `own` says that no other service that may run beside it computes on any of its CPUs.
    """

    cores: tuple[Core, ...]
    loader_cores: tuple[Core, ...]
    gpus: tuple[PciDevice, ...]
    own: bool
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]

    @property
    def cpus(self) -> CpuSet:
        """All CPUs of its cores."""
        return CpuSet.union(core.cpus for core in self.cores)

    @property
    def loader_cpus(self) -> CpuSet:
        """All CPUs of its loader workers' own cores."""
        return CpuSet.union(core.cpus for core in self.loader_cores)


@dataclass(frozen=True)
class Placement:
    """The shares by unit name, and the cores they were taken from."""

    shares: dict[str, Share]
    usable: UsableCores


def place(config: Config, facts: HostFacts) -> Placement:
    """Give every declared service its share of the host; what it has in force it keeps, as far as it still can.

    Raises PlacementError when what is asked for is not there; the message names who asked and who holds it.
    """
    usable = find_usable_cores(facts, host_cpus=config.host.cpus, reserve=config.host.reserve_cores)
    claims = _place_claims(config, facts, usable)
    if facts.in_force:
        _explain_stays(claims, _place_claims(config, facts.afresh(), usable))
    usable = _give_away(claims, usable)
    owners = _Owners(claims)
    shares = {}
    for claim in claims:
        own = owners.owns(claim)
        reasons, warnings = tuple(claim.reasons), tuple(claim.warnings)
        share = Share(claim.cores or (), claim.loader_cores, claim.gpus, own, reasons, warnings)
        shares.update(dict.fromkeys((service.unit for service in claim.services), share))
    return Placement(shares, usable)


def _place_claims(config: Config, facts: HostFacts, usable: UsableCores) -> list[Claim]:
    claims = make_claims(config.services, facts.in_force)
    place_explicit(claims, usable, facts)
    place_gpus(claims, facts)
    enabled = [claim for claim in claims if claim.enabled]
    distance = node_distance(facts)
    free = _cores_for_all(enabled, usable)
    amounts = _count_out(enabled, usable, free)
    cores = lay_out(free, [_need(claim, amount.count) for claim, amount in amounts], distance)
    for (claim, amount), chosen in zip(amounts, cores, strict=True):
        _give(claim, chosen, amount.why)
        _warn_of_slower(claim, usable)
    free, slow = _free_cores(usable.pool, enabled), _free_cores(usable.slow, enabled)
    for claim in claims:
        if claim.cores is None:
            _place_guest(claim, free, slow, usable, distance)
    place_loaders(claims, usable, distance)
    _warn_of_guests(claims)
    return claims


def _explain_stays(claims: Sequence[Claim], afresh: Sequence[Claim]) -> None:
    """Say where a claim would be if nothing were in force. The same for the one that came and those that stayed."""
    for claim, other in zip(claims, afresh, strict=True):
        here, there = (CpuSet.union(core.cpus for core in one.cores or ()) for one in (claim, other))
        if here != there:
            why = f"so that services stay where they are; placed afresh it would have CPUs {there} (apply --afresh)"
            claim.reasons.append(Reason("CPUs", str(here), why))


def _free_cores(pool: Iterable[Core], claims: Iterable[Claim]) -> list[Core]:
    held = CpuSet.union(core.cpus for claim in claims if claim.exclusive() for core in claim.cores or ())
    return [core for core in pool if core.cpus.isdisjoint(held)]


def _cores_for_all(enabled: Sequence[Claim], usable: UsableCores) -> list[Core]:
    """The free cores of the pool; where services need more, those beyond the quota, the slower ones, the system's.

    No service is refused as long as each can have what it asks for.
    """
    free = _free_cores(usable.pool, enabled)
    asking = [claim for claim in enabled if claim.request.kind in (CpuRequestKind.COUNT, CpuRequestKind.AUTO)]
    needed, counted = sum(_least(claim) for claim in asking), sum(claim.request.count for claim in asking)
    for part in (usable.beyond, usable.slow, usable.spare):
        more = sorted(_free_cores(part, enabled), key=lambda core: -core.capacity)
        # Where counts leave no faster core, the auto services have none that would wait for the slower ones.
        all_of_them = part is usable.slow and len(free) <= counted < needed
        free += more if all_of_them else more[: max(0, needed - len(free))]
    return sorted(free, key=lambda core: core.cpus.first())


def _least(claim: Claim) -> int:
    """The fewest cores that a claim can do with."""
    return claim.request.count or claim.ranks()


def _need(claim: Claim, count: int) -> Need:
    """What a claim needs of the free cores. Where its accelerators are others than before, its old place is no reason
    to stay away from them."""
    near = CpuSet(gpu.numa_node for gpu in claim.gpus if gpu.numa_node is not None)
    moved = near and tuple(gpu.name for gpu in claim.gpus) != claim.held.gpus
    return Need(count, near, CpuSet() if moved else claim.held.cpus, claim.ranks(), claim.by_node())


def _give(claim: Claim, cores: tuple[Core, ...], why: str) -> None:
    claim.cores = cores
    near = ", near its GPUs" if any(gpu.numa_node is not None for gpu in claim.gpus) else ""
    text = f"{why}: {len(cores)} {'core' if len(cores) == 1 else 'cores'} {_where(cores)}{near}"
    claim.reasons.append(Reason("CPUs", str(CpuSet.union(core.cpus for core in cores)), text))


def _warn_of_slower(claim: Claim, usable: UsableCores) -> None:
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


@dataclass(frozen=True)
class _Amount:
    """How many cores a claim gets, and by which rule."""

    count: int
    why: str


def _count_out(enabled: Sequence[Claim], usable: UsableCores, cores: Sequence[Core]) -> list[tuple[Claim, _Amount]]:
    """How many of the free `cores` each enabled claim gets: counts, then auto by weight (largest remainder).

    The hardest to place come first in each: those with several ranks, then the largest.
    """
    free = len(cores)
    amounts: list[tuple[Claim, _Amount]] = []
    counts = [claim for claim in enabled if claim.request.kind is CpuRequestKind.COUNT]
    for claim in sorted(counts, key=lambda claim: (-claim.request.count, claim.name)):
        if claim.request.count > free:
            raise claim.refuse(_too_much(claim, free, usable, enabled, amounts))
        amounts.append((claim, _Amount(claim.request.count, "whole cores as asked for")))
        free -= claim.request.count
    autos = [claim for claim in enabled if claim.request.kind is CpuRequestKind.AUTO]
    if len(autos) > free:
        beyond = autos[free]
        raise beyond.refuse(_too_much(beyond, 0, usable, enabled, amounts))
    least = [claim.ranks() for claim in autos]
    if sum(least) > free:
        least = [1] * len(autos)
    shared = any(claim.request.kind is CpuRequestKind.SHARED for claim in enabled)
    # Every enabled service gets a core; the shared ones together one that no auto service takes.
    slow = set(_free_cores(usable.slow, enabled)).difference(cores)
    total = free - (1 if shared and not slow and free > sum(least) else 0)
    weights = [claim.weight for claim in autos]
    counted = largest_remainder(total, weights, least=least)
    # Equal ranks need cores on several nodes; a single process does with what they leave.
    shares = sorted(
        zip(autos, counted, strict=True),
        key=lambda pair: (not pair[0].by_node() and pair[0].ranks() == 1, -pair[1], pair[0].name),
    )
    for claim, count in shares:
        rule = f"weight {claim.weight} of {sum(weights)}" if len(autos) > 1 else "the only enabled CPUs=auto service"
        amounts.append((claim, _Amount(count, f"{rule}, of {total} cores that are free")))
    return amounts


def _too_much(
    claim: Claim,
    left: int,
    usable: UsableCores,
    enabled: Sequence[Claim],
    amounts: Sequence[tuple[Claim, _Amount]] = (),
) -> str:
    counted = {id(other): amount.count for other, amount in amounts}
    holders = [
        f"{len(other.cores) if other.cores else counted[id(other)]} held by {other.name}"
        for other in enabled
        if other is not claim and (other.cores or id(other) in counted)
    ]
    asking = claim.request.count or 1
    number = len({*usable.pool, *usable.beyond, *usable.slow, *usable.spare})
    return (
        f"it asks for {asking} {'core' if asking == 1 else 'cores'}, but {left} of the {number} "
        f"usable cores {'is' if left == 1 else 'are'} left"
        + (f": {', '.join(holders)}" if holders else "")
        + "; ask for fewer, set Enabled=no for one of them, or use CPUs=shared"
    )


def _place_guest(
    claim: Claim,
    free: list[Core],
    slow: list[Core],
    usable: UsableCores,
    distance: Callable[[int, int], int],
) -> None:
    """A claim that holds nothing: shared, or not enabled. It gets what the enabled claims leave."""
    if claim.request.kind is CpuRequestKind.SHARED:
        offered = [*free, *slow]
        why = "what no enabled service holds"
    else:
        offered = free
        why = "not enabled, so it holds nothing and gets what no enabled service holds"
    needed = max(1, _least(claim))
    if needed > len(offered):
        offered = _all_for_guest(claim, needed, usable)
        if len(free) < len(usable.pool):
            why = "enabled services hold all the others, so it shares theirs"
            # A shared service that is not enabled, such as the demo, expects no better.
            if claim.enabled or claim.request.kind is not CpuRequestKind.SHARED:
                claim.warnings.append(
                    f"{claim.name}: enabled services leave too few cores, so it shares CPUs with them; "
                    "both will be slower"
                )
    (cores,) = lay_out(offered, [_need(claim, claim.request.count or len(offered))], distance)
    _give(claim, cores, why)


def _all_for_guest(claim: Claim, needed: int, usable: UsableCores) -> list[Core]:
    """The cores of the pool, whoever holds them, and as many others as a guest lacks; those kept back are the last."""
    offered = list(usable.pool)
    for part in (usable.beyond, usable.slow, usable.spare):
        more = sorted(part, key=lambda core: -core.capacity)[: max(0, needed - len(offered))]
        offered += more
        if more and part is not usable.slow:
            cpus = CpuSet.union(core.cpus for core in more)
            why = usable.left_out[cpus.first()].partition(" (")[0]
            claim.warnings.append(f"{claim.who}: CPUs {cpus} are {why}, but it needs {needed} cores")
    if claim.request.count > len(offered):
        raise claim.refuse(_too_much(claim, len(offered), usable, ()))
    return sorted(offered, key=lambda core: core.cpus.first())


def _give_away(claims: Sequence[Claim], usable: UsableCores) -> UsableCores:
    """Say of cores that are kept back and had to be given away; the conf may name them as it likes."""
    back = CpuSet.union(core.cpus for core in (*usable.beyond, *usable.spare))
    kept = {cpu: usable.left_out[cpu].partition(" (")[0] for cpu in back}
    counted = [claim for claim in claims if claim.exclusive() and not claim.request.is_explicit()]
    given = {cpu: claim.name for claim in counted for cpu in _cpus(claim) if cpu in kept}
    if not given:
        return usable
    why = " and ".join(sorted({kept[cpu] for cpu in given}))
    warning = f"CPUs {CpuSet(given)} are {why}, but services need them to have a core each; set Enabled=no for one"
    told = {cpu: f"{kept[cpu]} while every service has a core, and given to {name}" for cpu, name in given.items()}
    return dataclasses.replace(usable, left_out={**usable.left_out, **told}, warnings=(*usable.warnings, warning))


def _warn_of_guests(claims: Sequence[Claim]) -> None:
    held = {cpu: claim for claim in claims if claim.exclusive() for core in claim.cores or () for cpu in core.cpus}
    for claim in claims:
        if claim.enabled or not claim.request.is_explicit():
            continue
        holders = {held[cpu].name: cpu for core in claim.cores or () for cpu in core.cpus if cpu in held}
        for name, cpu in holders.items():
            claim.warnings.append(f"{claim.who}: CPU {cpu} is held by {name}, which is enabled; both will be slower")


class _Owners:
    """Who may run on each CPU. An enabled claim owns its CPUs against all but other enabled ones, which may be shared;
    one that is not enabled also against those that are not, save the shared ones, which are guests everywhere."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._enabled = Counter(cpu for claim in claims if claim.enabled for cpu in _cpus(claim))
        others = [claim for claim in claims if not claim.enabled and claim.request.kind is not CpuRequestKind.SHARED]
        self._others = Counter(cpu for claim in others for cpu in _cpus(claim))

    def owns(self, claim: Claim) -> bool:
        """Whether nobody else is expected on the CPUs of a claim."""
        if claim.request.kind is CpuRequestKind.SHARED:
            return False
        if claim.enabled:
            return all(self._enabled[cpu] == 1 for cpu in _cpus(claim))
        return all(self._enabled[cpu] == 0 and self._others[cpu] == 1 for cpu in _cpus(claim))


def _cpus(claim: Claim) -> Iterator[int]:
    for core in claim.cores or ():
        yield from core.cpus
