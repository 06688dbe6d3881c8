"""Gives cores to services: who gets which, on the whole host at once.

Explicit lists come first, then counts, then the enabled auto claims share what is
left by weight; claims that are not enabled hold nothing and get what the enabled ones leave. Each decision leaves a
reason. How many cores a claim gets depends on the conf and the host alone; where they are, also on what is in force.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torchpar.conf.services import Config
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts, PciDevice
from torchpar.placement.accelerators import place_gpus
from torchpar.placement.amounts import cores_for_all, count_out, free_cores
from torchpar.placement.claims import Claim, Reason, make_claims
from torchpar.placement.cores import Core, UsableCores, find_usable_cores, node_distance
from torchpar.placement.give import give, need, used, warn_of_slower
from torchpar.placement.guests import place_guest, warn_of_guests
from torchpar.placement.improve import Improved, improve
from torchpar.placement.layout import lay_out
from torchpar.placement.loader_cores import place_loaders
from torchpar.placement.more_processes import offer_slower
from torchpar.placement.named import place_explicit
from torchpar.placement.staying import place_staying


@dataclass(frozen=True)
class Share:
    """The part of the host that one service gets: cores to compute on, and slower ones for its loader workers.

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
    """Gives every declared service its share of the host; what it has in force it keeps, as far as it still can.

    Raises PlacementError when what is asked for is not there; the message names who asked and who holds it.
    """
    usable = find_usable_cores(facts, host_cpus=config.host.cpus, reserve=config.host.reserve_cores)
    afresh = _ask(config, facts.afresh(), usable)
    claims = afresh
    distance = node_distance(facts)
    improved = _place_afresh(afresh, usable, distance)
    usable = improved.usable
    if facts.in_force:
        claims = _ask(config, facts, usable)
        usable = place_staying(claims, afresh, improved, distance)
        _place_others(claims, usable, distance)
    _place_others(afresh, improved.usable, distance)
    if facts.in_force:
        _explain_stays(claims, afresh)
    usable = _give_away(claims, usable)
    owners = _Owners(claims)
    shares = {}
    for claim in claims:
        own = owners.owns(claim)
        reasons, warnings = tuple(claim.reasons), tuple(claim.warnings)
        share = Share(claim.cores or (), claim.loader_cores, claim.gpus, own, reasons, warnings)
        shares.update(dict.fromkeys((service.unit for service in claim.services), share))
    return Placement(shares, usable)


def _ask(config: Config, facts: HostFacts, usable: UsableCores) -> list[Claim]:
    """Makes all claims, with the CPUs that they name and their accelerators."""
    claims = make_claims(config.services, facts.in_force)
    place_explicit(claims, usable, facts)
    place_gpus(claims, facts)
    return claims


def _place_afresh(claims: Sequence[Claim], usable: UsableCores, distance: Callable[[int, int], int]) -> Improved:
    """Places the enabled claims by the rules, or better where they leave some less than is fair.

    The usable cores are then others, where those kept for the system are.
    """
    enabled = [claim for claim in claims if claim.enabled]
    free = cores_for_all(enabled, usable)
    amounts = count_out(enabled, usable, free)
    laid_out = lay_out(free, [need(claim, amount.count) for claim, amount in amounts], distance)
    placed = {
        claim.name: used(claim, cores, usable.quota) for (claim, _), cores in zip(amounts, laid_out, strict=True)
    }
    improved = improve(placed, enabled, free, usable, distance)
    for claim, amount in amounts:
        give(claim, used(claim, improved.placed[claim.name], usable.quota), amount.why)
        claim.reasons += improved.reasons.get(claim.name, ())
    return improved


def _place_others(claims: Sequence[Claim], usable: UsableCores, distance: Callable[[int, int], int]) -> None:
    """Places the claims that hold nothing, and the loader workers of all."""
    enabled = [claim for claim in claims if claim.enabled]
    for claim in claims:
        if claim.cores is not None and claim.exclusive() and not claim.request.is_explicit():
            warn_of_slower(claim, usable)
    offer_slower(claims, usable, distance)
    free, slow = free_cores(usable.pool, enabled), free_cores(usable.slow, enabled)
    for claim in claims:
        if claim.cores is None:
            place_guest(claim, free, slow, usable, distance)
    place_loaders(claims, usable, distance)
    warn_of_guests(claims)


def _explain_stays(claims: Sequence[Claim], afresh: Sequence[Claim]) -> None:
    """Says where a claim would be if nothing were in force. The same for the one that came and those that stayed."""
    for claim, other in zip(claims, afresh, strict=True):
        here, there = (CpuSet.union(core.cpus for core in one.cores or ()) for one in (claim, other))
        if here != there:
            why = f"so that services stay where they are; placed afresh it would have CPUs {there} (apply --afresh)"
            claim.reasons.append(Reason("CPUs", str(here), why))


def _give_away(claims: Sequence[Claim], usable: UsableCores) -> UsableCores:
    """Says of cores that are kept back and had to be given away; the conf may name them as it likes."""
    back = CpuSet.union(core.cpus for core in (*usable.beyond, *usable.spare))
    kept = {cpu: usable.left_out[cpu].partition(" (")[0] for cpu in back}
    counted = [claim for claim in claims if claim.exclusive() and not claim.request.is_explicit()]
    given = {cpu: claim.name for claim in counted for cpu in _cpus(claim) if cpu in kept}
    if not given:
        return usable
    why = " and ".join(sorted({kept[cpu] for cpu in given}))
    if len(counted) == 1:
        need = f"{counted[0].name} asks for so many by CPUs= or Ranks=; it may be as fast with fewer"
    else:
        need = "services need them to have what they ask for; ask for less, or set Enabled=no for one"
    warning = f"CPUs {CpuSet(given)} are {why}, but {need}"
    told = {cpu: f"{kept[cpu]} while every service has a core, and given to {name}" for cpu, name in given.items()}
    return dataclasses.replace(usable, left_out={**usable.left_out, **told}, warnings=(*usable.warnings, warning))


class _Owners:
    """The services that may run on each CPU.

    An enabled claim owns its CPUs against all but other enabled ones, which may be shared; one that is not enabled also
    against those that are not, save the shared ones, which are guests everywhere.
    """

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._enabled = Counter(cpu for claim in claims if claim.enabled for cpu in _cpus(claim))
        others = [claim for claim in claims if not claim.enabled and claim.request.kind is not CpuRequestKind.SHARED]
        self._others = Counter(cpu for claim in others for cpu in _cpus(claim))

    def owns(self, claim: Claim) -> bool:
        """Says whether nobody else is expected on the CPUs of a claim."""
        if claim.request.kind is CpuRequestKind.SHARED:
            return False
        if claim.enabled:
            return all(self._enabled[cpu] == 1 for cpu in _cpus(claim))
        return all(self._enabled[cpu] == 0 and self._others[cpu] == 1 for cpu in _cpus(claim))


def _cpus(claim: Claim) -> Iterator[int]:
    for core in claim.cores or ():
        yield from core.cpus
