"""Decides who stays: services keep their cores, unless others would then have fewer ranks or less speed than afresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.amounts import cores_for_all, count_out, free_cores
from torchpar.placement.claims import Claim
from torchpar.placement.cores import Core, UsableCores
from torchpar.placement.give import give, need, used
from torchpar.placement.improve import Improved, Placed, fair_speeds, quality
from torchpar.placement.split import split_nodes
from torchpar.placement.staying import Need, lay_out

# What may be lost of the quality of a placement afresh so that services stay where they are.
_LOST = 0.05

# How often what was chosen is looked at again; beyond that all have their places of afresh.
_ROUNDS = 5


def place_staying(
    claims: Sequence[Claim], afresh: Sequence[Claim], improved: Improved, distance: Callable[[int, int], int]
) -> None:
    """Place the enabled claims where they are, each with as many cores as afresh.

    Where that changes the number of ranks on NUMA nodes, or costs more than a twentieth of the quality, the first one
    moves that helps, and all as the last resort: what a job was tuned for must not depend on who came before it.
    """
    usable = improved.usable
    enabled = [claim for claim in claims if claim.enabled]
    amounts = count_out(enabled, usable, cores_for_all(enabled, usable))
    other = {claim.name: claim.cores or () for claim in afresh}
    movable = [claim for claim, _ in amounts]
    wanted = {claim.name: other[claim.name] for claim in movable}
    free = _free(enabled, usable, wanted)
    needs = {claim.name: need(claim, len(wanted[claim.name])) for claim in movable}
    fair = fair_speeds(enabled, usable)
    chosen = wanted
    # What moves is where it stays the next time: that must change nothing any more.
    for _ in range(_ROUNDS):
        before, chosen = chosen, _stay(movable, free, needs, wanted, fair, usable.quota, distance)
        if chosen == before:
            break
        needs = {name: dataclasses.replace(each, held=_cpus(chosen[name])) for name, each in needs.items()}
    else:
        chosen = wanted
    for claim, amount in amounts:
        give(claim, chosen[claim.name], amount.why)
        if set(chosen[claim.name]) == set(wanted[claim.name]):
            claim.reasons += improved.reasons.get(claim.name, ())


def _stay(
    movable: Sequence[Claim],
    free: Sequence[Core],
    needs: Mapping[str, Need],
    wanted: Placed,
    fair: Mapping[str, float],
    quota: int | None,
    distance: Callable[[int, int], int],
) -> Placed:
    """Returns the first placement that is nearly as good as `wanted`: all stay, all but one, those near accelerators.

    Claims near accelerators are where these are, whatever that costs the others.
    """
    measured = [claim for claim in movable if not claim.gpus]

    def tries() -> Iterator[Placed]:
        yield _used(movable, _lay_out(free, needs, distance), quota)
        for claim in reversed(measured):
            yield from without([claim.name])
        yield from without([claim.name for claim in measured])

    def without(moving: Sequence[str]) -> Iterator[Placed]:
        placed = _without(free, needs, wanted, moving, distance)
        if placed is not None:
            yield _used(movable, placed, quota)

    def is_good(placed: Placed) -> bool:
        return is_nearly_as_good(placed, wanted, measured, fair, quota)

    if len(measured) == len(movable):
        return next((placed for placed in tries() if is_good(placed)), wanted)
    every = list(tries())
    return next((placed for placed in every if is_good(placed)), every[0])


def is_nearly_as_good(
    placed: Placed, wanted: Placed, claims: Sequence[Claim], fair: Mapping[str, float], quota: int | None
) -> bool:
    """Says whether claims are as well placed as is `wanted`, but for a little, with as many ranks on NUMA nodes."""
    if any(_ranks(claim, placed) != _ranks(claim, wanted) for claim in claims):
        return False
    return quality(placed, claims, fair, quota) >= quality(wanted, claims, fair, quota) - _LOST


def _free(enabled: Sequence[Claim], usable: UsableCores, wanted: Placed) -> list[Core]:
    """Returns the free cores, with all slower ones where a claim has some that the rules do not need."""
    free = cores_for_all(enabled, usable)
    slow = set(free_cores(usable.slow, enabled)).difference(free)
    needed = any(core in slow for cores in wanted.values() for core in cores)
    return sorted([*free, *(slow if needed else ())], key=lambda core: core.cpus.first())


def _lay_out(free: Sequence[Core], needs: Mapping[str, Need], distance: Callable[[int, int], int]) -> Placed:
    return dict(zip(needs, lay_out(free, list(needs.values()), distance), strict=True))


def _without(
    free: Sequence[Core],
    needs: Mapping[str, Need],
    wanted: Placed,
    moving: Sequence[str],
    distance: Callable[[int, int], int],
) -> Placed | None:
    """Lays out so that all stay but some, which have their places of afresh; None where another is in the way that
    stays."""
    mine = CpuSet.union(_cpus(wanted[name]) for name in moving)
    others = {name: each for name, each in needs.items() if name not in moving}
    if any(not each.held.isdisjoint(mine) for each in others.values()):
        return None
    left = [core for core in free if core.cpus.isdisjoint(mine)]
    return {**{name: wanted[name] for name in moving}, **_lay_out(left, others, distance)}


def _used(claims: Sequence[Claim], placed: Placed, quota: int | None) -> Placed:
    return {claim.name: used(claim, placed[claim.name], quota) for claim in claims}


def _cpus(cores: Iterable[Core]) -> CpuSet:
    return CpuSet.union(core.cpus for core in cores)


def _ranks(claim: Claim, placed: Placed) -> int:
    """Returns the ranks of a claim with one for each NUMA node; 0 for others, whose number the conf gives."""
    cores = placed[claim.name]
    return len(split_nodes(cores, len(cores))) if claim.by_node() else 0
