"""Decides who stays: services keep their cores, unless others would then have fewer ranks or less speed than afresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.amounts import beyond_quota, cores_for_all, count_out, exchangeable, free_cores
from torchpar.placement.claims import Claim, Decision, Placed
from torchpar.placement.cores import Core, Cores, Distance
from torchpar.placement.give import give, need, used
from torchpar.placement.improve import Improved, fair_speeds
from torchpar.placement.layout import Need, lay_out
from torchpar.placement.places import places_speed, split_places
from torchpar.placement.quality import Quality, count_cells, speed_on, total
from torchpar.placement.split import split_nodes
from torchpar.placement.usable import UsableCores, keep_unheld

# What may be lost of the quality of a placement afresh so that services stay where they are.
_LOST = 0.05

# How often what was chosen is looked at again; beyond that all have their places of afresh.
_ROUNDS = 5


def place_staying(claims: Sequence[Claim], afresh: Improved) -> tuple[dict[str, Decision[Cores]], UsableCores]:
    """Places the enabled claims where they are, each with as many cores as afresh; returns also the usable cores.

    The system then keeps cores that no claim has. Where staying changes the number of ranks on NUMA nodes, or costs
    more than a twentieth of the quality, the first one moves that helps, and all as the last resort: what a job was
    tuned for must not depend on who came before it.
    """
    usable, wanted = afresh.usable, afresh.placed
    enabled = [claim for claim in claims if claim.enabled]
    amounts = count_out(enabled, usable, cores_for_all(enabled, usable))
    movable = [claim for claim, _ in amounts]
    staying = _Staying(enabled, movable, wanted, usable, fair_speeds(enabled, usable))
    needs = {claim.name: need(claim, len(wanted[claim.name])) for claim in movable}
    chosen = _Choice(wanted, usable)
    # What moves is where it stays the next time: that must change nothing any more.
    for _ in range(_ROUNDS):
        before, chosen = chosen, staying.choose(needs)
        if chosen == before:
            break
        needs = {name: dataclasses.replace(each, held=_cpus(chosen.placed[name])) for name, each in needs.items()}
    else:
        chosen = _Choice(wanted, usable)
    decisions = {}
    for claim, amount in amounts:
        cores = chosen.placed[claim.name]
        more = afresh.reasons.get(claim.name, ()) if set(cores) == set(wanted[claim.name]) else ()
        decisions[claim.name] = give(claim, cores, amount.why, more)
    return decisions, chosen.usable


@dataclass(frozen=True)
class _Choice:
    """One way to place claims, and the cores that are usable: others may be kept for the system than afresh."""

    placed: Placed
    usable: UsableCores


@dataclass(frozen=True)
class _Staying:
    """The enabled claims, those that are `movable`, where these would be afresh, and the cores that are then usable."""

    enabled: Sequence[Claim]
    movable: Sequence[Claim]
    wanted: Placed
    usable: UsableCores
    fair: Mapping[str, float]

    def choose(self, needs: Mapping[str, Need]) -> _Choice:
        """Returns the first way that is nearly as good as afresh: all stay, all but one, those near accelerators.

        Claims near accelerators are where these are, whatever that costs the others.
        """
        measured = [claim for claim in self.movable if not claim.gpus]

        def is_good(choice: _Choice) -> bool:
            return is_nearly_as_good(choice.placed, self.wanted, measured, self.fair, self.usable.quota)

        if len(measured) == len(self.movable):
            afresh = _Choice(self.wanted, self.usable)
            return next((choice for choice in self._tries(needs, measured) if is_good(choice)), afresh)
        tries = list(self._tries(needs, measured))
        return next((choice for choice in tries if is_good(choice)), tries[0])

    def _tries(self, needs: Mapping[str, Need], measured: Sequence[Claim]) -> Iterator[_Choice]:
        moving: list[list[str]] = [[], *([claim.name] for claim in reversed(measured))]
        moving.append([claim.name for claim in measured])
        usables = [self._unheld(needs), self.usable]
        for usable in usables if usables[0] != self.usable else usables[1:]:
            free = _free(self.enabled, usable, self.wanted)
            for names in moving:
                placed = _without(free, needs, self.wanted, names, usable.distance)
                if placed is not None:
                    mine = {claim.name: used(claim, placed[claim.name], usable) for claim in self.movable}
                    yield _Choice(mine, usable)

    def _unheld(self, needs: Mapping[str, Need]) -> UsableCores:
        free = cores_for_all(self.enabled, self.usable)
        held = CpuSet.union(each.held for each in needs.values())
        spare = exchangeable(self.usable, free, self.enabled)
        beyond = beyond_quota(self.usable, free, self.enabled)[0] if self.usable.alike else []
        return keep_unheld(keep_unheld(self.usable, "spare", spare, free, held), "beyond", beyond, free, held)


def is_nearly_as_good(
    placed: Placed, wanted: Placed, claims: Sequence[Claim], fair: Mapping[str, float], quota: int | None
) -> bool:
    """Says whether claims are as well placed as is `wanted`, but for a little, with as many ranks on NUMA nodes."""
    if any(_ranks(claim, placed) != _ranks(claim, wanted) for claim in claims):
        return False
    here, afresh = (
        total(Quality(_speed(claim, where[claim.name], quota), fair[claim.name]) for claim in claims)
        for where in (placed, wanted)
    )
    return here >= afresh - _LOST


def _speed(claim: Claim, cores: Cores, quota: int | None) -> float:
    """Returns the speed of a claim on these cores; of an inference service, that of the processes it will have."""
    ask = claim.ask()
    if ask.trains or not cores:
        return speed_on(count_cells(cores), ask, quota)
    return places_speed(split_places(cores, quota)[0], quota)


def _free(enabled: Sequence[Claim], usable: UsableCores, wanted: Placed) -> list[Core]:
    """Returns the free cores and all that claims have afresh, with all slower ones where a claim has some that the
    rules do not need; none of those beyond the quota that nobody needs."""
    free = set(cores_for_all(enabled, usable))
    more = {core for cores in wanted.values() for core in cores}.difference(free, usable.beyond)
    slow = set(free_cores(usable.slow, enabled))
    return sorted(free | more | (slow if more & slow else set()), key=lambda core: core.cpus.first())


def _lay_out(free: Sequence[Core], needs: Mapping[str, Need], distance: Distance) -> Placed:
    return dict(zip(needs, lay_out(free, list(needs.values()), distance), strict=True))


def _without(
    free: Sequence[Core],
    needs: Mapping[str, Need],
    wanted: Placed,
    moving: Sequence[str],
    distance: Distance,
) -> Placed | None:
    """Lays out so that all stay but some, which have their places of afresh; None where another is in the way that
    stays, or what is kept for the system."""
    mine = _cpus(core for name in moving for core in wanted[name])
    others = {name: each for name, each in needs.items() if name not in moving}
    if any(not each.held.isdisjoint(mine) for each in others.values()) or not mine <= _cpus(free):
        return None
    left = [core for core in free if core.cpus.isdisjoint(mine)]
    return {**{name: wanted[name] for name in moving}, **_lay_out(left, others, distance)}


def _cpus(cores: Iterable[Core]) -> CpuSet:
    return CpuSet.union(core.cpus for core in cores)


def _ranks(claim: Claim, placed: Placed) -> int:
    """Returns the ranks of a claim with one for each NUMA node; 0 for others, whose number the conf gives."""
    cores = placed[claim.name]
    return len(split_nodes(cores, len(cores))) if claim.by_node() else 0
