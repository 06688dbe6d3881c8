"""Gives cores to the ranks of one service: equal ones, as the fastest of them waits for the slowest.

Ranks differ by one core at the most. They keep to a NUMA node each, with fewer cores where that is faster than to have
some across nodes; cores that equal ranks have no use for are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torchpar.placement.cores import Core
from torchpar.placement.quality import ACROSS_NODES, process_speed, size_within_nodes, training_speed


def split_alike(
    cores: Sequence[Core], split: Callable[[Sequence[Core]], list[list[Core]]], quota: int | None
) -> list[list[Core]]:
    """Returns the parts that are the fastest: of all cores, or without the slower ones, which the others would wait
    for.

    `quota` is how many of all cores compute at a time.
    """
    best: list[list[Core]] = []
    speed = 0.0
    for slowest in sorted({core.capacity for core in cores}):
        parts = split([core for core in cores if core.capacity >= slowest])
        found = speed_of(parts, quota)
        if found > speed * (1 + 1e-9):
            best, speed = parts, found
    return best


def speed_of(parts: Sequence[Sequence[Core]], quota: int | None) -> float:
    """Returns the speed of ranks with these cores, where `quota` of all cores compute at a time."""
    threads = None if quota is None or not parts else max(1, quota // len(parts))
    return training_speed(process_speed(part, threads) for part in parts)


def split_cores(cores: Sequence[Core], count: int) -> list[list[Core]]:
    """Returns the cores of each of `count` ranks; none where there are too few."""
    if count > len(cores):
        return []
    if count == 1:
        return [list(cores)]
    nodes = by_node(cores)
    size = len(cores) // count
    within = size_within_nodes([len(node) for node in nodes], count)
    return _within(nodes, count, within) if within >= ACROSS_NODES * size else _across(nodes, count, size)


def split_nodes(cores: Sequence[Core], most: int) -> list[list[Core]]:
    """Returns the cores of a rank for each NUMA node: equal parts of all nodes, or of fewer where that is faster.

    There are no more than `most` ranks; a single one has all cores.
    """
    if most == 1:
        return [list(cores)]
    nodes = sorted(by_node(cores), key=lambda node: -len(node))[:most]
    number = best_nodes([len(node) for node in nodes])
    size = len(nodes[number - 1])
    return sorted((node[: size + 1] for node in nodes[:number]), key=lambda part: part[0].numa_node)


def by_node(cores: Iterable[Core]) -> list[list[Core]]:
    """Returns the cores of each NUMA node, neighbours beside each other."""
    nodes: dict[int, list[Core]] = {}
    for core in sorted(cores, key=lambda core: (core.numa_node, core.package, core.core_complex, core.cpus.first())):
        nodes.setdefault(core.numa_node, []).append(core)
    return list(nodes.values())


def best_nodes(sizes: Sequence[int]) -> int:
    """Finds on how many of the nodes, which are the largest first, equal parts are most together; the more if equal."""
    return max(range(1, len(sizes) + 1), key=lambda number: (number * sizes[number - 1], number))


def chunks(cores: Sequence[Core], count: int) -> list[list[Core]]:
    """Cuts cores into `count` parts of neighbours, the first of which get the remainder."""
    size, larger = divmod(len(cores), count)
    parts, start = [], 0
    for i in range(count):
        end = start + size + (i < larger)
        parts.append(list(cores[start:end]))
        start = end
    return parts


def _within(nodes: Sequence[Sequence[Core]], count: int, size: int) -> list[list[Core]]:
    ranks = [0] * len(nodes)
    for _ in range(count):
        room = [i for i, node in enumerate(nodes) if len(node) // size > ranks[i]]
        ranks[max(room, key=lambda i: (len(nodes[i]) / (ranks[i] + 1), -i))] += 1
    return [
        part
        for node, number in zip(nodes, ranks, strict=True)
        if number
        for part in chunks(node[: number * (size + 1)], number)
    ]


def _across(nodes: Sequence[Sequence[Core]], count: int, size: int) -> list[list[Core]]:
    """Counts the whole ranks of each node, and the others of what these leave."""
    parts: list[list[Core]] = []
    rest: list[Core] = []
    for node in nodes:
        whole = len(node) // size * size
        parts += chunks(node[:whole], whole // size)[:count] if whole else []
        rest += node[whole:]
    missing = count - len(parts)
    parts += chunks(rest[: missing * size], missing)
    for core in rest[missing * size :]:
        smaller = [p for p in parts if len(p) == size and {c.numa_node for c in p} == {core.numa_node}]
        if smaller:
            smaller[0].append(core)
    return sorted(parts, key=lambda part: (part[0].numa_node, part[0].cpus.first()))
