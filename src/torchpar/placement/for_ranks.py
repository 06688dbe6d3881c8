"""Chooses the cores of a service with several ranks: on NUMA nodes where equal ranks have room, none across."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torchpar.placement.cores import Core, Distance, choose_cores
from torchpar.placement.split import by_node

# What is given up of a service's speed so that it breaks up fewer nodes.
_NEARLY = 0.9


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
