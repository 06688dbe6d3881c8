"""Puts amounts of cores where services have them now, as far as that is possible.

It knows no services: only amounts, and for each the cores that it has and rather keeps than leaves. Several ranks are
put on NUMA nodes where equal ones have room, none across.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.cores import Core, Distance, choose_cores
from torchpar.placement.split import by_node

# What is given up of a service's speed so that it breaks up fewer nodes.
_NEARLY = 0.9


@dataclass(frozen=True)
class Need:
    """`count` cores for one claim, near the NUMA nodes `near` (empty: anywhere); it rather keeps the CPUs `held`.

    They are for so many `ranks`, or for one on each node (`by_node`).
    """

    count: int
    near: CpuSet = CpuSet()
    held: CpuSet = CpuSet()
    ranks: int = 1
    by_node: bool = False


def lay_out(free: Sequence[Core], needs: Sequence[Need], distance: Distance) -> list[tuple[Core, ...]]:
    """Returns the cores of each need, in the order of the needs; together they want no more than the free cores.

    First every need keeps what it has, or the part of it that is best for its ranks or lies best together. Then those
    that want more get it, in their order: beside what they keep, unless that spans more nodes or packages than a place
    with all of it would.
    Laying out the result again changes nothing: each need then holds exactly what it wants.
    """
    left = {core.cpus.first(): core for core in free}
    of_cpu = {cpu: core for core in free for cpu in core.cpus}
    kept: list[tuple[Core, ...]] = []
    unsettled = False
    for need in needs:
        mine = dict.fromkeys(of_cpu[cpu] for cpu in need.held if cpu in of_cpu)
        own = tuple(core for core in mine if core.cpus.first() in left)
        if len(own) > need.count and need.by_node and unsettled:
            # Where those before it go decides how many ranks are best; it starts anew anyway.
            own = ()
        elif len(own) > need.count:
            own = _equal(own, need, distance) or choose_cores(own, need.count, near=need.near, distance=distance)
        unsettled = unsettled or len(own) < need.count
        kept.append(own)
        for core in own:
            del left[core.cpus.first()]
    laid_out = []
    for need, own in zip(needs, kept, strict=True):
        if len(own) < need.count:
            left.update((core.cpus.first(), core) for core in own)
            own = _grow(own, [left[cpu] for cpu in sorted(left)], need, distance)
            for core in own:
                del left[core.cpus.first()]
        laid_out.append(tuple(sorted(own, key=lambda core: core.cpus.first())))
    return laid_out


def _grow(kept: tuple[Core, ...], free: Sequence[Core], need: Need, distance: Distance) -> tuple[Core, ...]:
    equal = _equal(free, need, distance, frozenset(kept))
    if equal:
        return equal
    anywhere = choose_cores(free, need.count, near=need.near, distance=distance)
    if not kept:
        return anywhere
    beside = choose_cores(free, need.count, near=need.near, distance=distance, kept=kept)
    return beside if spread(beside, need.near) <= spread(anywhere, need.near) else anywhere


def _equal(
    free: Sequence[Core], need: Need, distance: Distance, kept: Collection[Core] = ()
) -> tuple[Core, ...] | None:
    """Cores that equal ranks can use, whether the service is new, grows or shrinks; None where locality decides."""
    if need.near:
        return None
    if need.by_node:
        return choose_for_nodes(free, need.count, distance, kept)
    return choose_for_ranks(free, need.count, need.ranks, distance, kept)


def spread(cores: Sequence[Core], near: CpuSet) -> tuple[int, int, int]:
    """Measures how far cores lie from each other, and from the nodes `near`: less is better."""
    far = sum(core.numa_node not in near for core in cores) if near else 0
    return far, len({core.numa_node for core in cores}), len({core.package for core in cores})


def choose_for_ranks(
    free: Sequence[Core],
    count: int,
    ranks: int,
    distance: Distance,
    kept: Collection[Core] = (),
) -> tuple[Core, ...] | None:
    """Chooses `count` of the free cores such that `ranks` equal ranks keep to a node each; None where that cannot be,
    or where one node has room for all of them. Of nodes that do as well it is those with the most cores that are
    `kept`."""
    size = count // ranks
    if ranks == 1 or not size:
        return None
    nodes = by_node(free)
    if max(map(len, nodes)) >= count or sum(len(node) // size for node in nodes) < ranks:
        return None
    amounts: list[tuple[list[Core], int]] = []
    missing, extra = ranks, count - ranks * size
    while missing:
        enough = [node for node in nodes if len(node) // size >= missing]
        # The node that all others fit in with the fewest left over; else the one with the most room.
        if enough:
            node = min(enough, key=lambda node: (-_own(node, kept), len(node)))
        else:
            node = max(nodes, key=lambda node: (len(node) // size, _own(node, kept)))
        nodes.remove(node)
        here = min(missing, len(node) // size)
        more = min(extra, here, len(node) - here * size)
        amounts.append((node, here * size + more))
        missing, extra = missing - here, extra - more
    return _take(free, amounts, extra, distance, kept)


def choose_for_nodes(
    free: Sequence[Core], count: int, distance: Distance, kept: Collection[Core] = ()
) -> tuple[Core, ...]:
    """Chooses `count` of the free cores in parts on NUMA nodes that are as equal, and together as fast, as can be."""
    nodes = sorted(by_node(free), key=lambda node: -len(node))
    sizes = [min(len(node), count // number) for number, node in enumerate(nodes, 1)]
    # Of those nearly as fast the fewest nodes: whole ones are then left for others.
    best = max(number * size for number, size in enumerate(sizes, 1))
    number = next(number for number, size in enumerate(sizes, 1) if number * size >= _NEARLY * best)
    size = max(1, sizes[number - 1])
    # Those with cores that are kept; else that just have room for a part, so that whole nodes are left for others.
    chosen = sorted([node for node in nodes if len(node) >= size], key=lambda node: _own(node, kept))[-number:]
    extra, amounts = count - number * size, []
    for node in chosen:
        more = min(extra, 1, len(node) - size)
        amounts.append((node, size + more))
        extra -= more
    return _take(free, amounts, extra, distance, kept)


def _own(node: Sequence[Core], kept: Collection[Core]) -> int:
    return sum(core in kept for core in node)


def _take(
    free: Sequence[Core],
    amounts: Sequence[tuple[list[Core], int]],
    extra: int,
    distance: Distance,
    kept: Collection[Core],
) -> tuple[Core, ...]:
    """Chooses so many cores of each node, those that are kept first; and `extra` ones beside them, for which equal
    ranks have no use."""
    taken: list[Core] = []
    for node, number in amounts:
        own = [core for core in node if core in kept]
        own = list(choose_cores(own, min(len(own), number), distance=distance))
        taken += choose_cores(node, number, kept=own, distance=distance)
    if extra:
        taken = list(choose_cores(free, len(taken) + extra, kept=taken, distance=distance))
    return tuple(sorted(taken, key=lambda core: core.cpus.first()))
