"""Cores and accelerators to services: who gets which, on the whole host at once.

Services of one slot are one claim. Explicit lists come first, then counts, then the enabled auto claims share what is
left by weight; claims that are not enabled hold nothing and get what the enabled ones leave. Each decision leaves a
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torchpar.config import Config, Service
from torchpar.cores import Core, UsableCores, choose_cores, find_usable_cores, node_distance
from torchpar.cpuset import CpuSet
from torchpar.errors import PlacementError
from torchpar.topology import HostFacts, PciDevice
from torchpar.values import CpuRequest, CpuRequestKind


@dataclass(frozen=True)
class Reason:
    """Why a value is what it is: the key it is about, the value, and the rule with the facts it rests on."""

    key: str
    value: str
    why: str


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


@dataclass
class _Claim:
    """One service, or the services of one slot, while cores are given out."""

    services: list[Service]
    request: CpuRequest
    weight: int
    enabled: bool
    gpus: tuple[PciDevice, ...] = ()
    cores: tuple[Core, ...] | None = None
    reasons: list[Reason] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " and ".join(service.section for service in self.services)

    @property
    def who(self) -> str:
        """The claim for a message: where it asks, and for what."""
        service = self.services[0]
        return f"{service.origin('CPUs')}: {self.name} CPUs={_request_text(self.request)}"

    def exclusive(self) -> bool:
        return self.enabled and self.request.kind is not CpuRequestKind.SHARED


def place(config: Config, facts: HostFacts) -> Placement:
    """Give every declared service its share of the host.

    Raises PlacementError when what is asked for is not there; the message names who asked and who holds it.
    """
    usable = find_usable_cores(facts, host_cpus=config.host.cpus, reserve=config.host.reserve_cores)
    claims = _make_claims(config.services)
    _place_gpus(claims, facts)
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
            raise PlacementError(_too_much(claim, len(free), usable, enabled))
        _take(claim, free, claim.request.count, distance, "whole cores as asked for")
    autos = [claim for claim in enabled if claim.request.kind is CpuRequestKind.AUTO]
    _share_out(autos, free, usable, enabled, distance)
    for claim in claims:
        if claim.cores is None:
            _place_guest(claim, free, usable, distance)
    _warn_of_guests(claims)
    owners = _owners(claims)
    shares = {}
    for claim in claims:
        own = all(owners[cpu] == 1 for core in claim.cores or () for cpu in core.cpus)
        for service in claim.services:
            shares[service.unit] = Share(
                claim.cores or (), claim.gpus, own and claim.request.kind is not CpuRequestKind.SHARED,
                tuple(claim.reasons), tuple(claim.warnings),
            )  # fmt: skip
    return Placement(shares, usable)


def _make_claims(services: Iterable[Service]) -> list[_Claim]:
    slots: dict[str, list[Service]] = {}
    for service in services:
        slots.setdefault(f"slot {service.settings.slot}" if service.settings.slot else service.unit, []).append(service)
    claims = []
    for members in slots.values():
        claims.append(
            _Claim(
                members,
                _slot_request(members),
                max(service.settings.weight for service in members),
                any(service.settings.enabled for service in members),
            )
        )
    return claims


def _slot_request(members: Sequence[Service]) -> CpuRequest:
    """What a slot asks for: the most that any of its services does."""
    requests = {service.settings.cpus for service in members}
    explicit = [request for request in requests if request.is_explicit()]
    if explicit and len(requests) > 1:
        service = next(service for service in members if service.settings.cpus.is_explicit())
        raise PlacementError(
            f"{service.origin('CPUs')}: the services of Slot={service.settings.slot} share one set of CPUs, but "
            "have different CPUs=; give all of them the same"
        )
    if explicit:
        return explicit[0]
    by_kind = {request.kind: request for request in sorted(requests, key=lambda request: request.count)}
    for kind in (CpuRequestKind.COUNT, CpuRequestKind.AUTO):
        if kind in by_kind:
            return by_kind[kind]
    return CpuRequest(CpuRequestKind.SHARED)


def _place_explicit(claim: _Claim, usable: UsableCores, facts: HostFacts) -> None:
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
        raise PlacementError(f"{claim.who}: {_why_missing(missing, facts, usable)}")
    cores = []
    for core in usable.named:
        cpus = core.cpus & wanted
        if cpus:
            cores.append(Core(cpus, core.package, core.numa_node, core.core_complex, core.efficiency))
    claim.cores = tuple(cores)
    claim.reasons.append(Reason("CPUs", str(wanted), f"named by CPUs={_request_text(request)}"))


def _cpus_of(places: dict[int, CpuSet], claim: _Claim, what: str) -> CpuSet:
    for number in claim.request.numbers:
        if not places.get(number):
            having = CpuSet(number for number, cpus in places.items() if cpus)
            state = "has no CPUs" if number in places else "does not exist on this host"
            raise PlacementError(f"{claim.who}: {what} {number} {state}; those with CPUs are {having}")
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


def _refuse_overlap(claims: Sequence[_Claim]) -> None:
    holder: dict[int, _Claim] = {}
    for claim in claims:
        for core in claim.cores or ():
            for cpu in core.cpus:
                other = holder.setdefault(cpu, claim)
                if other is not claim:
                    raise PlacementError(
                        f"{claim.who}: CPU {cpu} is also named by {other.who}; "
                        "give each its own CPUs, or the same Slot= if they take turns"
                    )


def _free_cores(pool: Iterable[Core], claims: Iterable[_Claim]) -> list[Core]:
    held = CpuSet.union(core.cpus for claim in claims if claim.exclusive() for core in claim.cores or ())
    return [core for core in pool if core.cpus.isdisjoint(held)]


def _take(
    claim: _Claim, free: list[Core], count: int, distance: Callable[[int, int], int], why: str
) -> None:
    near = CpuSet(gpu.numa_node for gpu in claim.gpus if gpu.numa_node is not None)
    claim.cores = choose_cores(free, count, near=near, distance=distance)
    taken = set(claim.cores)
    free[:] = [core for core in free if core not in taken]
    claim.reasons.append(_cores_reason(claim, why))


def _cores_reason(claim: _Claim, why: str) -> Reason:
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
    claims: list[_Claim],
    free: list[Core],
    usable: UsableCores,
    enabled: Sequence[_Claim],
    distance: Callable[[int, int], int],
) -> None:
    """Enabled CPUs=auto claims share the free cores by weight (largest remainder), each at least one core."""
    if len(claims) > len(free):
        raise PlacementError(_too_much(claims[len(free)], 0, usable, enabled))
    counts = largest_remainder(len(free), [claim.weight for claim in claims], least=1)
    weights = sum(claim.weight for claim in claims)
    total = len(free)
    for claim, count in sorted(zip(claims, counts, strict=True), key=lambda pair: (-pair[1], pair[0].name)):
        share = f"weight {claim.weight} of {weights}" if len(claims) > 1 else "the only enabled CPUs=auto service"
        _take(claim, free, count, distance, f"{share}, of {total} cores that are free")


def largest_remainder(total: int, weights: Sequence[int], *, least: int = 0) -> list[int]:
    """Split `total` by weights with whole numbers that sum to it, each at least `least` (Hamilton's method).

    `total` must be at least `least` times the number of weights; earlier entries win ties.
    """
    if not weights:
        return []
    spare = total - least * len(weights)
    ideal = [total * weight / sum(weights) for weight in weights]
    above = [max(0.0, share - least) for share in ideal]
    scale = spare / sum(above) if sum(above) else 0.0
    exact = [share * scale for share in above]
    counts = [int(share + 1e-9) for share in exact]
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: spare - sum(counts)]:
        counts[i] += 1
    return [least + count for count in counts]


def _too_much(claim: _Claim, left: int, usable: UsableCores, enabled: Sequence[_Claim]) -> str:
    holders = [
        f"{other.name} holds {len(other.cores)}" for other in enabled if other is not claim and other.cores is not None
    ]
    asking = claim.request.count or 1
    return (
        f"{claim.who} asks for {asking} {'core' if asking == 1 else 'cores'}, but {left} of the {len(usable.pool)} "
        f"usable cores {'is' if left == 1 else 'are'} left"
        + (f": {', '.join(holders)}" if holders else "")
        + "; ask for fewer, set Enabled=no for one of them, or use CPUs=shared"
    )


def _place_guest(
    claim: _Claim, free: list[Core], usable: UsableCores, distance: Callable[[int, int], int]
) -> None:
    """A claim that holds nothing: shared, or not enabled. It gets what the enabled claims leave."""
    if claim.request.kind is CpuRequestKind.SHARED:
        offered = [*free, *usable.slow]
        why = "what no enabled service holds"
    else:
        offered = free
        why = "not enabled, so it holds nothing and gets what no enabled service holds"
    count = claim.request.count
    if count > len(usable.pool):
        raise PlacementError(_too_much(claim, len(usable.pool), usable, ()))
    if not offered or count > len(offered):
        offered = list(usable.pool)
        why = "enabled services hold all the others, so it shares theirs"
        claim.warnings.append(
            f"{claim.name}: enabled services leave too few cores, so it shares CPUs with them; both will be slower"
        )
    _take(claim, list(offered), count or len(offered), distance, why)


def _warn_of_guests(claims: Sequence[_Claim]) -> None:
    held = {
        cpu: claim for claim in claims if claim.exclusive() for core in claim.cores or () for cpu in core.cpus
    }
    for claim in claims:
        if claim.enabled or not claim.request.is_explicit():
            continue
        holders = {held[cpu].name: cpu for core in claim.cores or () for cpu in core.cpus if cpu in held}
        for name, cpu in holders.items():
            claim.warnings.append(f"{claim.who}: CPU {cpu} is held by {name}, which is enabled; both will be slower")


def _owners(claims: Sequence[_Claim]) -> dict[int, int]:
    """How many claims may run on each CPU; a shared service that is not enabled is a guest and does not count."""
    owners: dict[int, int] = {}
    for claim in claims:
        guest = claim.request.kind is CpuRequestKind.SHARED and not claim.enabled
        for core in claim.cores or ():
            for cpu in core.cpus:
                owners[cpu] = owners.get(cpu, 0) + (not guest)
    return owners


def _place_gpus(claims: Sequence[_Claim], facts: HostFacts) -> None:
    """Accelerators: named ones, then counts, then CPUs by weight; services with CPUs=shared hold none unless they ask."""
    devices = facts.accelerators()
    free = list(devices)
    ordered = sorted(claims, key=lambda claim: not claim.enabled)
    for claim in ordered:
        names = [name for service in claim.services for name in service.settings.gpus.names]
        claim.gpus = tuple(_find_gpu(name, devices, claim) for name in dict.fromkeys(names))
        for gpu in claim.gpus:
            if claim.enabled and gpu not in free:
                raise PlacementError(
                    f"{claim.services[0].origin('GPUs')}: {claim.name} GPUs=: {gpu.pci} is held by another service"
                )
            if claim.enabled:
                free.remove(gpu)
    for claim in ordered:
        count = max(service.settings.gpus.count or 0 for service in claim.services)
        if count and not claim.gpus:
            available = free if claim.enabled or len(free) >= count else list(devices)
            if count > len(available):
                raise PlacementError(
                    f"{claim.services[0].origin('GPUs')}: {claim.name} GPUs={count}: this host has {len(devices)} "
                    f"{'accelerator' if len(devices) == 1 else 'accelerators'}, {len(free)} of them free"
                )
            claim.gpus = tuple(available[:count])
            if claim.enabled:
                free = free[count:]
    autos = [
        claim
        for claim in ordered
        if claim.request.kind is not CpuRequestKind.SHARED
        and all(service.settings.gpus.count is None for service in claim.services)
    ]
    sharing = [claim for claim in autos if claim.enabled]
    for claim, count in zip(sharing, largest_remainder(len(free), [c.weight for c in sharing]), strict=True):
        claim.gpus, free = tuple(free[:count]), free[count:]
    for claim in autos:
        if not claim.enabled:
            claim.gpus = tuple(free)
    for claim in claims:
        if claim.gpus:
            addresses = " ".join(gpu.pci for gpu in claim.gpus)
            claim.reasons.append(Reason("GPUs", addresses, f"{len(claim.gpus)} of the host's {len(devices)}"))


def _find_gpu(name: str, devices: Sequence[PciDevice], claim: _Claim) -> PciDevice:
    for device in devices:
        if name.lower() in (device.pci.lower(), (device.uuid or "").lower()):
            return device
    having = ", ".join(device.pci for device in devices) or "none"
    raise PlacementError(
        f"{claim.services[0].origin('GPUs')}: {claim.name} GPUs={name}: no such accelerator on this host (it has: {having})"
    )


def _request_text(request: CpuRequest) -> str:
    if request.kind is CpuRequestKind.COUNT:
        return str(request.count)
    if request.kind is CpuRequestKind.LIST:
        return str(request.numbers)
    if request.is_explicit():
        return f"{request.kind.value}:{request.numbers}"
    return str(request.kind.value)
