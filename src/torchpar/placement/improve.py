"""Looks whether all services together could have more of their fair shares than the rules give them.

The rules place one service after the other, and each as if it were the last: what is left may be in pieces that equal
ranks have no use for. Where that costs about a percent, other ways are searched for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.placement.amounts import beyond_quota, exchangeable, free_cores, least
from torchpar.placement.claims import Claim, Placed, Reason
from torchpar.placement.cores import Core, choose_cores
from torchpar.placement.quality import Quality, count_cells, fair_shares, speed_on, total
from torchpar.placement.search import Cell, Seeker, search
from torchpar.placement.usable import UsableCores, keep_others

# Beyond these a search finds too little for the time it takes.
_SERVICES = 20
_CELLS = 128

# What must be won for another placement than that of the rules.
_WORTH = 0.009


@dataclass(frozen=True)
class Improved:
    """A placement, the reasons where it is not that of the rules, and the usable cores: others may be kept back."""

    placed: Placed
    reasons: Mapping[str, Sequence[Reason]]
    usable: UsableCores


def improve(
    placed: Placed,
    enabled: Sequence[Claim],
    free: Sequence[Core],
    usable: UsableCores,
) -> Improved:
    """Finds a better placement of the claims that are `placed` on `free` cores; the same where there is none."""
    same = Improved(placed, {}, usable)
    moving = [claim for claim in enabled if claim.name in placed and not claim.gpus]
    slow = free_cores(usable.slow, enabled)
    # Slower cores load data; where the rules cannot do without them, it may be any of them.
    offered = list(dict.fromkeys([*free, *(slow if not set(slow).isdisjoint(free) else ())]))
    # Which ones are kept for the system, or are beyond a quota, is decided by what is best for the services.
    spare = exchangeable(usable, free, enabled)
    beyond, given = beyond_quota(usable, free, enabled)
    offered = list(dict.fromkeys([*offered, *spare, *beyond]))
    taken = {core for claim in enabled if claim.gpus for core in placed.get(claim.name, ())}
    offered = [core for core in offered if core not in taken]
    cells: dict[Cell, list[Core]] = {}
    for core in sorted(offered, key=lambda core: core.cpus.first()):
        cells.setdefault((core.numa_node, core.capacity), []).append(core)
    if len(moving) > _SERVICES or len(cells) > _CELLS:
        return same
    fair = fair_speeds(enabled, usable)
    before = quality(placed, moving, fair, usable.quota)
    if not moving or before > 1 - _WORTH:
        return same
    # The hardest to place first, as by the rules.
    moving.sort(key=lambda c: (-c.request.count, not c.by_node() and c.ranks() == 1, -fair[c.name], c.name))
    shared = any(claim.request.kind is CpuRequestKind.SHARED for claim in enabled)
    back = len(spare) + len(beyond) - given
    keep = 1 if shared and len(offered) - back > sum(least(claim) for claim in moving) else 0
    keep += back
    seekers = [Seeker(claim.ask(), fair[claim.name]) for claim in moving]
    found = search({cell: len(cores) for cell, cores in cells.items()}, seekers, keep=keep, quota=usable.quota)
    if not found:
        return same
    better = dict(placed)
    for claim, amounts in zip(moving, found, strict=True):
        chosen: list[Core] = []
        for cell, number in sorted(amounts.items()):
            part = choose_cores(cells[cell], number, distance=usable.distance)
            cells[cell] = [core for core in cells[cell] if core not in set(part)]
            chosen += part
        better[claim.name] = tuple(chosen)
    # What is left of the slower cores loads data.
    left = [core for cores in cells.values() for core in cores if core not in slow]
    _fill(better, moving, left, keep, usable.quota)
    after = quality(better, moving, fair, usable.quota)
    if after < before + _WORTH:
        return same
    in_order = {name: tuple(sorted(cores, key=lambda core: core.cpus.first())) for name, cores in better.items()}
    reasons = {
        claim.name: [_reason(in_order[claim.name], placed[claim.name], before, after)]
        for claim in moving
        if set(in_order[claim.name]) != set(placed[claim.name])
    }
    usable = keep_others(usable, "spare", spare, left)
    held = sorted((core for cores in better.values() for core in cores), key=lambda core: -core.capacity)
    return Improved(in_order, reasons, keep_others(usable, "beyond", beyond, left, given=held[:given]))


def fair_speeds(enabled: Sequence[Claim], usable: UsableCores) -> dict[str, float]:
    """Returns the speed that is fair for each enabled claim that asks for a number or a share of cores."""
    asking = [claim for claim in enabled if claim.request.kind in (CpuRequestKind.COUNT, CpuRequestKind.AUTO)]
    named = [claim for claim in enabled if claim.request.is_explicit()]
    cores = free_cores([*usable.pool, *usable.beyond, *usable.slow, *usable.spare], named)
    shared = any(claim.request.kind is CpuRequestKind.SHARED for claim in enabled)
    asks = [claim.ask() for claim in asking]
    fair = fair_shares(cores, asks, kept=len(usable.spare), shared=shared, quota=usable.quota)
    return dict(zip((claim.name for claim in asking), fair, strict=True))


def quality(placed: Placed, claims: Iterable[Claim], fair: Mapping[str, float], quota: int | None) -> float:
    """Returns the quality of a placement of some claims."""
    return total(
        Quality(speed_on(count_cells(placed[claim.name]), claim.ask(), quota), fair[claim.name]) for claim in claims
    )


def _fill(
    placed: dict[str, tuple[Core, ...]], claims: Sequence[Claim], left: list[Core], keep: int, quota: int | None
) -> None:
    """Gives shares by weight what is left where it makes them faster, a core for each rank at the most."""
    for claim in sorted(claims, key=lambda claim: (-claim.weight, claim.name)):
        own, ask = placed[claim.name], claim.ask()
        if claim.request.count:
            continue
        nodes = {core.numa_node for core in own}
        slowest = min(core.capacity for core in own)
        near = [core for core in left if core.numa_node in nodes and core.capacity >= slowest]
        # One core of each node for ranks of nodes, or as many as there are ranks.
        more = list({core.numa_node: core for core in near}.values()) if ask.by_node else near[: ask.ranks]
        if len(left) - len(more) >= keep and speed_on(count_cells([*own, *more]), ask, quota) > speed_on(
            count_cells(own), ask, quota
        ) * (1 + 1e-9):
            placed[claim.name] = (*own, *more)
            for core in more:
                left.remove(core)


def _reason(cores: Sequence[Core], rejected: Sequence[Core], before: float, after: float) -> Reason:
    here, there = (CpuSet.union(core.cpus for core in part) for part in (cores, rejected))
    why = (
        f"so that all services together have {after:.0%} of their fair shares; with CPUs {there} here, the rules' "
        f"first choice, they have {before:.0%}"
    )
    return Reason("CPUs", str(here), why)
