"""Gives cores to services: who gets which, on the whole host at once.

usable cores + claims → named and accelerators → amounts → layout → improve → staying → slower cores, guests → shares

Beside that flow stand what it is made of: cores says which of them lie together, split which of them equal ranks use
and places which the processes of an inference service, give what a claim needs and gets; quality measures a placement,
and search finds better ones for improve.

Explicit lists come first, then counts, then the enabled auto claims share what is
left by weight; claims that are not enabled hold nothing and get what the enabled ones leave. Each decision leaves a
reason. How many cores a claim gets depends on the conf and the host alone; where they are, also on what is in force.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchpar.conf.services import Config
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts, PciDevice
from torchpar.placement.accelerators import place_gpus
from torchpar.placement.amounts import cores_for_all, count_out
from torchpar.placement.claims import Claim, Decision, Placed, Reason, Taken, make_claims
from torchpar.placement.cores import Core, Cores
from torchpar.placement.give import give, need, used, warn_of_slower
from torchpar.placement.guests import place_guests, warn_of_guests
from torchpar.placement.improve import Improved, improve
from torchpar.placement.layout import lay_out
from torchpar.placement.named import place_named
from torchpar.placement.slower_cores import offer_slower, place_loaders
from torchpar.placement.staying import place_staying
from torchpar.placement.usable import UsableCores, find_usable_cores


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


def place(config: Config, facts: HostFacts, *, taken: Taken = None) -> Placement:
    """Gives every declared service its share of the host; what it has in force it keeps, as far as it still can.

    `taken` is what jobs compute on at the moment, by their names: services that are not enabled keep away from it where
    they can, and are told where they cannot.

    Raises PlacementError when what is asked for is not there; the message names who asked and who holds it.
    """
    usable = find_usable_cores(facts, host_cpus=config.host.cpus, reserve=config.host.reserve_cores)
    asked = _ask(config, facts.afresh(), usable, taken)
    improved, decisions = _place_afresh(asked.claims, usable)
    afresh = _place_others(asked, decisions, improved.usable)
    if not facts.in_force:
        return _make_placement(afresh)
    asked = _ask(config, facts, improved.usable, taken)
    decisions, usable = place_staying(asked.claims, improved)
    return _make_placement(_explain_stays(_place_others(asked, decisions, usable), afresh))


# The decisions of one rule, by the claim's name.
_Step = Mapping[str, Decision[object]]


@dataclass(frozen=True)
class _Decided:
    """All claims with the cores that they have so far, and the decisions that led there, in their order."""

    claims: tuple[Claim, ...]
    usable: UsableCores
    steps: tuple[_Step, ...]
    cores: Placed
    loader_cores: Placed
    taken: Taken

    def cpus(self, claim: Claim) -> CpuSet:
        """Returns the CPUs of a claim's cores."""
        return CpuSet.union(core.cpus for core in self.cores[claim.name])

    def reasons(self, claim: Claim) -> tuple[Reason, ...]:
        """Returns the reasons of all decisions on a claim."""
        return tuple(reason for step in self.steps if claim.name in step for reason in step[claim.name].reasons)

    def warnings(self, claim: Claim) -> tuple[str, ...]:
        """Returns the warnings of all decisions on a claim."""
        return tuple(warning for step in self.steps if claim.name in step for warning in step[claim.name].warnings)


def _ask(config: Config, facts: HostFacts, usable: UsableCores, taken: Taken) -> _Decided:
    """Makes all claims, with the cores that they name and their accelerators."""
    claims = make_claims(config.services, facts.in_force)
    named = place_named(claims, usable, facts)
    cores = {name: decision.value for name, decision in named.items()}
    claims = [dataclasses.replace(claim, named=cores.get(claim.name, ())) for claim in claims]
    gpus = place_gpus(claims, facts, taken)
    claims = [dataclasses.replace(claim, gpus=gpus[claim.name].value) for claim in claims]
    return _Decided(tuple(claims), usable, (named, gpus), cores, {}, taken)


def _place_afresh(claims: Sequence[Claim], usable: UsableCores) -> tuple[Improved, dict[str, Decision[Cores]]]:
    """Places the enabled claims by the rules, or better where they leave some less than is fair.

    The usable cores are then others, where those kept for the system are.
    """
    enabled = [claim for claim in claims if claim.enabled]
    free = cores_for_all(enabled, usable)
    amounts = count_out(enabled, usable, free)
    laid_out = lay_out(free, [need(claim, amount.count) for claim, amount in amounts], usable.distance)
    placed = {claim.name: used(claim, cores, usable) for (claim, _), cores in zip(amounts, laid_out, strict=True)}
    improved = improve(placed, enabled, free, usable)
    placed = {claim.name: used(claim, improved.placed[claim.name], usable) for claim, _ in amounts}
    decisions = {
        claim.name: give(claim, placed[claim.name], amount.why, improved.reasons.get(claim.name, ()))
        for claim, amount in amounts
    }
    return dataclasses.replace(improved, placed=placed), decisions


def _place_others(asked: _Decided, decisions: Mapping[str, Decision[Cores]], usable: UsableCores) -> _Decided:
    """Places the claims that hold nothing, and the loader workers of all, beside those decided on."""
    enabled = [claim for claim in asked.claims if claim.enabled]
    placed = {**asked.cores, **{name: decision.value for name, decision in decisions.items()}}
    slower = {
        claim.name: Decision(None, warnings=tuple(warn_of_slower(claim, placed[claim.name], usable)))
        for claim in enabled
        if claim.name in decisions
    }
    more = offer_slower(asked.claims, placed, usable)
    placed.update((name, decision.value) for name, decision in more.items())
    guests = place_guests(asked.claims, placed, usable, asked.taken)
    placed.update((name, decision.value) for name, decision in guests.items())
    loaders = place_loaders(asked.claims, placed, usable)
    steps = (*asked.steps, decisions, slower, more, guests, loaders, warn_of_guests(asked.claims, placed))
    loader_cores = {name: decision.value for name, decision in loaders.items()}
    return _Decided(asked.claims, usable, steps, placed, loader_cores, asked.taken)


def _explain_stays(staying: _Decided, afresh: _Decided) -> _Decided:
    """Says where a claim would be if nothing were in force. The same for the one that came and those that stayed."""
    why = {}
    for claim in staying.claims:
        here, there = staying.cpus(claim), afresh.cpus(claim)
        if here != there:
            text = f"so that services stay where they are; placed afresh it would have CPUs {there} (apply --afresh)"
            why[claim.name] = Decision(None, (Reason("CPUs", str(here), text),))
    return dataclasses.replace(staying, steps=(*staying.steps, why))


def _make_placement(placed: _Decided) -> Placement:
    owners = _Owners(placed)
    shares = {}
    for claim in placed.claims:
        cores, loader_cores = placed.cores[claim.name], placed.loader_cores.get(claim.name, ())
        reasons, warnings = placed.reasons(claim), placed.warnings(claim)
        share = Share(cores, loader_cores, claim.gpus, owners.owns(claim), reasons, warnings)
        shares.update(dict.fromkeys((service.unit for service in claim.services), share))
    return Placement(shares, _give_away(placed))


def _give_away(placed: _Decided) -> UsableCores:
    """Says of cores that are kept back and had to be given away; the conf may name them as it likes."""
    usable = placed.usable
    back = CpuSet.union(core.cpus for core in (*usable.beyond, *usable.spare))
    kept = {cpu: usable.left_out[cpu].partition(" (")[0] for cpu in back}
    counted = [claim for claim in placed.claims if claim.exclusive() and not claim.request.is_explicit()]
    given = {cpu: claim.name for claim in counted for cpu in placed.cpus(claim) if cpu in kept}
    if not given:
        return usable
    why = " and ".join(sorted({kept[cpu] for cpu in given}))
    if len(counted) == 1:
        what = f"{counted[0].name} asks for so many by CPUs= or Ranks=; it may be as fast with fewer"
    else:
        what = "services need them to have what they ask for; ask for less, or set Enabled=no for one"
    warning = f"CPUs {CpuSet(given)} are {why}, but {what}"
    told = {cpu: f"{kept[cpu]} while every service has a core, and given to {name}" for cpu, name in given.items()}
    return dataclasses.replace(usable, left_out={**usable.left_out, **told}, warnings=(*usable.warnings, warning))


class _Owners:
    """The services that may run on each CPU.

    An enabled claim owns its CPUs against all but other enabled ones, which may be shared; one that is not enabled also
    against those that are not, save the shared ones, which are guests everywhere; at a moment against what is taken.
    """

    def __init__(self, placed: _Decided) -> None:
        self._cpus = placed.cpus
        enabled = [claim for claim in placed.claims if claim.enabled]
        others = [c for c in placed.claims if not c.enabled and c.request.kind is not CpuRequestKind.SHARED]
        self._enabled, self._others = (
            Counter(cpu for claim in claims for cpu in placed.cpus(claim)) for claims in (enabled, others)
        )
        self._taken = CpuSet.union(held.cpus for held in (placed.taken or {}).values())

    def owns(self, claim: Claim) -> bool:
        """Says whether nobody else is expected on the CPUs of a claim."""
        if claim.request.kind is CpuRequestKind.SHARED:
            return False
        if claim.enabled:
            return all(self._enabled[cpu] == 1 for cpu in self._cpus(claim))
        alone = all(self._enabled[cpu] == 0 and self._others[cpu] == 1 for cpu in self._cpus(claim))
        return alone and self._taken.isdisjoint(self._cpus(claim))
