"""Decides who stays: services keep their cores, unless others would then have fewer ranks or less speed than afresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.amounts import cores_for_all, count_out, free_cores
from torchpar.placement.claims import Claim
from torchpar.placement.cores import Core, UsableCores
from torchpar.placement.give import give, need
from torchpar.placement.improve import Improved, Placed, fair_speeds, quality
from torchpar.placement.split import split_nodes
from torchpar.placement.staying import Need, lay_out

# What may be lost of the quality of a placement afresh so that services stay where they are.
_LOST = 0.05


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
    wanted = {claim.name: other[claim.name] for claim, _ in amounts}
    free = _free(enabled, usable, wanted)
    needs = {claim.name: need(claim, len(wanted[claim.name])) for claim, _ in amounts}
    movable = [claim for claim, _ in amounts]
    chosen = _lay_out(free, needs, distance)
    if not any(claim.gpus for claim in movable):
        fair = fair_speeds(enabled, usable)
        least = quality(wanted, movable, fair, usable.quota) - _LOST

        def is_good(placed: Placed) -> bool:
            alike = all(_ranks(claim, placed) == _ranks(claim, wanted) for claim in movable)
            return alike and quality(placed, movable, fair, usable.quota) >= least

        if not is_good(chosen):
            tries = (_without(free, needs, wanted, claim.name, distance) for claim in reversed(movable))
            chosen = next((placed for placed in tries if placed is not None and is_good(placed)), wanted)
    for claim, amount in amounts:
        give(claim, chosen[claim.name], amount.why)
        if set(chosen[claim.name]) == set(wanted[claim.name]):
            claim.reasons += improved.reasons.get(claim.name, ())


def _free(enabled: Sequence[Claim], usable: UsableCores, wanted: Placed) -> list[Core]:
    """Returns the free cores, with all slower ones where a claim has some that the rules do not need."""
    free = cores_for_all(enabled, usable)
    slow = set(free_cores(usable.slow, enabled)).difference(free)
    needed = any(core in slow for cores in wanted.values() for core in cores)
    return sorted([*free, *(slow if needed else ())], key=lambda core: core.cpus.first())


def _lay_out(free: Sequence[Core], needs: Mapping[str, Need], distance: Callable[[int, int], int]) -> Placed:
    return dict(zip(needs, lay_out(free, list(needs.values()), distance), strict=True))


def _without(
    free: Sequence[Core], needs: Mapping[str, Need], wanted: Placed, moving: str, distance: Callable[[int, int], int]
) -> Placed | None:
    """Lays out so that all stay but one, which has its place of afresh; None where another is in the way that stays."""
    mine = CpuSet.union(core.cpus for core in wanted[moving])
    others = {name: each for name, each in needs.items() if name != moving}
    if any(not each.held.isdisjoint(mine) for each in others.values()):
        return None
    left = [core for core in free if core.cpus.isdisjoint(mine)]
    return {moving: wanted[moving], **_lay_out(left, others, distance)}


def _ranks(claim: Claim, placed: Placed) -> int:
    """Returns the ranks of a claim with one for each NUMA node; 0 for others, whose number the conf gives."""
    cores = placed[claim.name]
    return len(split_nodes(cores, len(cores))) if claim.by_node() else 0
