"""The cores of a service with several ranks: on NUMA nodes where equal ranks have room, so that none is across."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchpar.placement.cores import Core, choose_cores
from torchpar.placement.split import by_node

# What is given up of a service's speed so that it breaks up fewer nodes.
_NEARLY = 0.9


def choose_for_ranks(
    free: Sequence[Core], count: int, ranks: int, distance: Callable[[int, int], int]
) -> tuple[Core, ...] | None:
    """`count` of the free cores such that `ranks` equal ranks keep to a node each; None where that cannot be, or where
    one node has room for all of them."""
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
        node = min(enough, key=len) if enough else max(nodes, key=lambda node: len(node) // size)
        nodes.remove(node)
        here = min(missing, len(node) // size)
        more = min(extra, here, len(node) - here * size)
        amounts.append((node, here * size + more))
        missing, extra = missing - here, extra - more
    return _take(free, amounts, extra, distance)


def choose_for_nodes(free: Sequence[Core], count: int, distance: Callable[[int, int], int]) -> tuple[Core, ...]:
    """`count` of the free cores in parts on NUMA nodes that are as equal, and together as fast, as can be."""
    nodes = sorted(by_node(free), key=lambda node: -len(node))
    sizes = [min(len(node), count // number) for number, node in enumerate(nodes, 1)]
    # Of those nearly as fast the fewest nodes: whole ones are then left for others.
    best = max(number * size for number, size in enumerate(sizes, 1))
    number = next(number for number, size in enumerate(sizes, 1) if number * size >= _NEARLY * best)
    size = max(1, sizes[number - 1])
    # Those that just have room for a part, so that whole nodes are left for others.
    chosen = [node for node in nodes if len(node) >= size][-number:]
    extra, amounts = count - number * size, []
    for node in chosen:
        more = min(extra, 1, len(node) - size)
        amounts.append((node, size + more))
        extra -= more
    return _take(free, amounts, extra, distance)


def _take(
    free: Sequence[Core], amounts: Sequence[tuple[list[Core], int]], extra: int, distance: Callable[[int, int], int]
) -> tuple[Core, ...]:
    """So many cores of each node, and `extra` ones beside them, which equal ranks have no use for."""
    taken = [core for node, number in amounts for core in choose_cores(node, number, distance=distance)]
    if extra:
        taken = list(choose_cores(free, len(taken) + extra, kept=taken, distance=distance))
    return tuple(sorted(taken, key=lambda core: core.cpus.first()))
