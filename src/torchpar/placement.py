"""Cores to services: who gets which, on the whole host at once.

Explicit lists come first, then counts, then the enabled auto claims share what is
left by weight; claims that are not enabled hold nothing and get what the enabled ones leave. Each decision leaves a
reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torchpar.claims import Claim, Reason, largest_remainder, make_claims, request_text
from torchpar.config import Config
from torchpar.cores import Core, UsableCores, choose_cores, find_usable_cores, node_distance
from torchpar.cpuset import CpuSet
from torchpar.gpus import place_gpus
from torchpar.topology import HostFacts, PciDevice
from torchpar.values import CpuRequestKind


@dataclass(frozen=True)
class Share:
    """What one service gets of the host.

    `own` says that no other service that may run beside it has any of these CPUs.
    """

    cores: tuple[Core, ...]
    gpus: tuple[PciDevice, ...]
    own: bool
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]

    @property
    def cpus(self) -> CpuSet:
        """All CPUs of its cores."""
        return CpuSet.union(core.cpus for core in self.cores)


@dataclass(frozen=True)
class Placement:
    """The shares by unit name, and the cores they were taken from."""

    shares: dict[str, Share]
    usable: UsableCores


def place(config: Config, facts: HostFacts) -> Placement:
    """Give every declared service its share of the host.

    Raises PlacementError when what is asked for is not there; the message names who asked and who holds it.
    """
    usable = find_usable_cores(facts, host_cpus=config.host.cpus, reserve=config.host.reserve_cores)
    claims = make_claims(config.services)
    place_gpus(claims, facts)
    enabled = [claim for claim in claims if claim.enabled]
    distance = node_distance(facts)
    for claim in claims:
        if claim.request.is_explicit():
            _place_explicit(claim, usable, facts)
    _refuse_overlap([claim for claim in enabled if claim.cores and claim.exclusive()])
    free = _free_cores(usable.pool, enabled)
    counts = [claim for claim in enabled if claim.request.kind is CpuRequestKind.COUNT]
    for claim in sorted(counts, key=lambda claim: (-claim.request.count, claim.name)):
        if claim.request.count > len(free):
            raise claim.refuse(_too_much(claim, len(free), usable, enabled))
        _take(claim, free, claim.request.count, distance, "whole cores as asked for")
    autos = [claim for claim in enabled if claim.request.kind is CpuRequestKind.AUTO]
    shared = any(claim.request.kind is CpuRequestKind.SHARED for claim in enabled)
    # Every enabled service gets a core; the shared ones together one that no auto service takes.
    spare = 1 if shared and not usable.slow and len(free) > len(autos) else 0
    _share_out(autos, free, len(free) - spare, usable, enabled, distance)
    for claim in claims:
        if claim.cores is None:
            _place_guest(claim, free, usable, distance)
    _warn_of_guests(claims)
    owners = _Owners(claims)
    shares = {}
    for claim in claims:
        share = Share(claim.cores or (), claim.gpus, owners.owns(claim), tuple(claim.reasons), tuple(claim.warnings))
        shares.update(dict.fromkeys((service.unit for service in claim.services), share))
    return Placement(shares, usable)


def _place_explicit(claim: Claim, usable: UsableCores, facts: HostFacts) -> None:
    request = claim.request
    wanted = request.numbers
    if request.kind is CpuRequestKind.NODES:
        wanted = _cpus_of({node.id: node.cpus for node in facts.numa_nodes}, claim, "NUMA node")
    elif request.kind is CpuRequestKind.PACKAGES:
        wanted = _cpus_of({package.id: package.cpus for package in facts.packages or ()}, claim, "package")
    named = CpuSet.union(core.cpus for core in usable.named)
    if request.kind is not CpuRequestKind.LIST:
        wanted = wanted & named
    missing = wanted - named
    if missing or not wanted:
        raise claim.refuse(_why_missing(missing, facts, usable))
    cores = []
    for core in usable.named:
        cpus = core.cpus & wanted
        if cpus:
            cores.append(Core(cpus, core.package, core.numa_node, core.core_complex, core.performance))
    claim.cores = tuple(cores)
    claim.reasons.append(Reason("CPUs", str(wanted), f"named by CPUs={request_text(request)}"))


def _cpus_of(places: dict[int, CpuSet], claim: Claim, what: str) -> CpuSet:
    for number in claim.request.numbers:
        if not places.get(number):
            having = CpuSet(number for number, cpus in places.items() if cpus)
            state = "has no CPUs" if number in places else "does not exist on this host"
            raise claim.refuse(f"{what} {number} {state}; those with CPUs are {having}")
    return CpuSet.union(places[number] for number in claim.request.numbers)


def _why_missing(missing: CpuSet, facts: HostFacts, usable: UsableCores) -> str:
    if not missing:
        return "none of their CPUs may be used"
    offline = missing & facts.offline_cpus
    if offline:
        return f"CPU {offline} is offline; bring it online or name others (online: {facts.online_cpus})"
    absent = missing - facts.online_cpus
    if absent:
        return f"this host has no CPU {absent} (online: {facts.online_cpus})"
    return f"CPU {missing} may not be used: {usable.left_out.get(missing.first(), 'not allowed')}"


def _refuse_overlap(claims: Sequence[Claim]) -> None:
    holder: dict[int, Claim] = {}
    for claim in claims:
        for core in claim.cores or ():
            for cpu in core.cpus:
                other = holder.setdefault(cpu, claim)
                if other is not claim:
                    raise claim.refuse(
                        f"CPU {cpu} is also named by {other.who}; "
                        "give each its own CPUs, or the same Slot= if they take turns"
                    )


def _free_cores(pool: Iterable[Core], claims: Iterable[Claim]) -> list[Core]:
    held = CpuSet.union(core.cpus for claim in claims if claim.exclusive() for core in claim.cores or ())
    return [core for core in pool if core.cpus.isdisjoint(held)]


def _take(claim: Claim, free: list[Core], count: int, distance: Callable[[int, int], int], why: str) -> None:
    near = CpuSet(gpu.numa_node for gpu in claim.gpus if gpu.numa_node is not None)
    claim.cores = choose_cores(free, count, near=near, distance=distance)
    taken = set(claim.cores)
    free[:] = [core for core in free if core not in taken]
    claim.reasons.append(_cores_reason(claim, why))


def _cores_reason(claim: Claim, why: str) -> Reason:
    cores = claim.cores or ()
    near = ", near its GPUs" if any(gpu.numa_node is not None for gpu in claim.gpus) else ""
    text = f"{why}: {len(cores)} {'core' if len(cores) == 1 else 'cores'} {_where(cores)}{near}"
    return Reason("CPUs", str(CpuSet.union(core.cpus for core in cores)), text)


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


def _share_out(
    claims: list[Claim],
    free: list[Core],
    total: int,
    usable: UsableCores,
    enabled: Sequence[Claim],
    distance: Callable[[int, int], int],
) -> None:
    """Enabled CPUs=auto claims share `total` of the free cores by weight (largest remainder), each at least one."""
    if len(claims) > len(free):
        beyond = claims[len(free)]
        raise beyond.refuse(_too_much(beyond, 0, usable, enabled))
    counts = largest_remainder(total, [claim.weight for claim in claims], least=1)
    weights = sum(claim.weight for claim in claims)
    for claim, count in sorted(zip(claims, counts, strict=True), key=lambda pair: (-pair[1], pair[0].name)):
        share = f"weight {claim.weight} of {weights}" if len(claims) > 1 else "the only enabled CPUs=auto service"
        _take(claim, free, count, distance, f"{share}, of {total} cores that are free")


def _too_much(claim: Claim, left: int, usable: UsableCores, enabled: Sequence[Claim]) -> str:
    holders = [
        f"{len(other.cores)} held by {other.name}"
        for other in enabled
        if other is not claim and other.cores is not None
    ]
    asking = claim.request.count or 1
    return (
        f"it asks for {asking} {'core' if asking == 1 else 'cores'}, but {left} of the {len(usable.pool)} "
        f"usable cores {'is' if left == 1 else 'are'} left"
        + (f": {', '.join(holders)}" if holders else "")
        + "; ask for fewer, set Enabled=no for one of them, or use CPUs=shared"
    )


def _place_guest(claim: Claim, free: list[Core], usable: UsableCores, distance: Callable[[int, int], int]) -> None:
    """A claim that holds nothing: shared, or not enabled. It gets what the enabled claims leave."""
    if claim.request.kind is CpuRequestKind.SHARED:
        offered = [*free, *usable.slow]
        why = "what no enabled service holds"
    else:
        offered = free
        why = "not enabled, so it holds nothing and gets what no enabled service holds"
    count = claim.request.count
    if count > len(usable.pool):
        raise claim.refuse(_too_much(claim, len(usable.pool), usable, ()))
    if not offered or count > len(offered):
        offered = list(usable.pool)
        why = "enabled services hold all the others, so it shares theirs"
        # A shared service that is not enabled, such as the demo, expects no better.
        if claim.enabled or claim.request.kind is not CpuRequestKind.SHARED:
            claim.warnings.append(
                f"{claim.name}: enabled services leave too few cores, so it shares CPUs with them; both will be slower"
            )
    _take(claim, list(offered), count or len(offered), distance, why)


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
