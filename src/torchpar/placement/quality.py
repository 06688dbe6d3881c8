"""Measures how good a placement is: what its services get of the host's speed.

Speed is counted in cores of the fastest kind. Synchronous ranks and the loops of OpenMP wait for the slowest thread, so
a process is as fast as its threads times its slowest core, and a training service as its ranks times the slowest of
them. The processes of an inference service wait for nobody: their speeds add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchpar.placement.cores import Core

# A process of an inference service has a copy of the model and an event loop of its own; below this many cores it is
# not worth them.
LEAST_CORES = 4

# What is left of the speed of a process whose memory is on several NUMA nodes.
ACROSS_NODES = 0.9


def process_speed(cores: Sequence[Core], threads: int | None = None) -> float:
    """Returns the speed of a process with these cores; `threads` compute, one on each core unless it is said."""
    if not cores:
        return 0.0
    across = ACROSS_NODES if len({core.numa_node for core in cores}) > 1 else 1.0
    number = len(cores) if threads is None else min(threads, len(cores))
    return across * number * min(core.capacity for core in cores)


def training_speed(ranks: Iterable[float]) -> float:
    """Returns the speed of a training service by the speeds of its ranks."""
    speeds = list(ranks)
    return len(speeds) * min(speeds, default=0.0)


def inference_speed(processes: Iterable[float]) -> float:
    """Returns the speed of an inference service by the speeds of its processes."""
    return sum(processes)


def size_within_nodes(sizes: Sequence[int], count: int) -> int:
    """Returns the most cores that each of `count` ranks can have if none crosses a node; 0 where nodes are too small.
    """
    # The size that is best just fills some node with a whole number of ranks.
    possible = {size // ranks for size in set(sizes) for ranks in range(1, min(size, count) + 1)}
    return max((each for each in possible if sum(size // each for size in sizes) >= count), default=0)


def host_speed(cores: Iterable[Core], most: int | None = None) -> float:
    """Returns the speed of the fastest single process that these cores could run, their NUMA nodes aside.

    `most` is the CPU quota, which so many threads use up.
    """
    return _fastest_set(sorted((core.capacity for core in cores), reverse=True), most)[1]


def _fastest_set(capacities: Sequence[float], most: int | None, *, cut: bool = True) -> tuple[int, float]:
    """Finds how many of the cores, the fastest first, are fastest together, and their speed.

    No more than `most` compute at a time; they are cut to so many, or else have all cores of the slowest kind.
    """
    best, speed = 0, 0.0
    for number, capacity in enumerate(capacities, 1):
        found = capacity * (number if most is None else min(number, most))
        alike = number > 1 and capacity == capacities[number - 2] and best == number - 1
        if found > speed * (1 + 1e-9) or (alike and not cut and found > speed * (1 - 1e-9)):
            best, speed = number, found
    return best, speed


@dataclass(frozen=True)
class Quality:
    """The speed that a service has, and the one that is its fair share."""

    got: float
    fair: float


def total(qualities: Iterable[Quality]) -> float:
    """Returns the quality of a plan: what its services get, each up to its fair share, of all of their fair shares."""
    each = list(qualities)
    fair = sum(one.fair for one in each)
    return sum(min(one.got, one.fair) for one in each) / fair if fair else 1.0


@dataclass(frozen=True)
class Ask:
    """The demand of one service: `count` cores, or its share by `weight` where that is 0, for so many `ranks`.

    A service that trains may have a rank for each NUMA node (`by_node`); one that does not is an inference service.
    """

    weight: int = 100
    count: int = 0
    ranks: int = 1
    by_node: bool = False
    trains: bool = True


def best_speed(cores: Iterable[Core], ask: Ask, number: int, quota: int | None = None) -> float:
    """Returns the best speed that a service can have with any `number` of these cores, all others aside."""
    return speed_on(count_cells(cores), ask, quota, number)


def count_cells(cores: Iterable[Core]) -> list[tuple[int, float, int]]:
    """Counts the cores of each NUMA node and capacity."""
    return [(*cell, number) for cell, number in Counter((core.numa_node, core.capacity) for core in cores).items()]


def speed_on(cells: Iterable[tuple[int, float, int]], ask: Ask, quota: int | None, most: int | None = None) -> float:
    """Returns the speed of a service with these cores: NUMA node, capacity, number. It uses no more than `most` of
    them, and none that is so slow that it is faster without it."""
    cells = list(cells)
    best = 0.0
    for slowest in {capacity for _, capacity, _ in cells}:
        on_node: dict[int, int] = {}
        for node, capacity, number in cells:
            if capacity >= slowest:
                on_node[node] = on_node.get(node, 0) + number
        sizes = sorted(on_node.values(), reverse=True)
        number = sum(sizes) if most is None else min(most, sum(sizes))
        best = max(best, slowest * _best_size(sizes, ask, number, quota))
    return best if ask.trains or quota is not None else max(best, _speed_by_kind(cells, most))


def _speed_by_kind(cells: Iterable[tuple[int, float, int]], most: int | None) -> float:
    """Returns the speed of an inference service with a process for each kind of cores of each node that has enough."""
    speed, left = 0.0, most
    for _, capacity, number in sorted(cells, key=lambda cell: -cell[1]):
        size = number if left is None else min(number, left)
        if size >= LEAST_CORES:
            speed += size * capacity
            left = None if left is None else left - size
    return speed


def _best_size(sizes: Sequence[int], ask: Ask, number: int, quota: int | None) -> float:
    """Counts the threads that can compute on cores of one kind, on nodes of these sizes, the largest first."""

    def threads(ranks: int, size: int) -> int:
        # Ranks that are more than the quota have a part of a CPU each.
        return ranks * size if quota is None else min(quota, ranks * min(size, max(1, quota // ranks)))

    if ask.by_node:
        return max(threads(ranks, min(size, number // ranks)) for ranks, size in enumerate(sizes, 1))
    within = size_within_nodes(sizes, ask.ranks)
    if not ask.trains:
        # A process for each node that is large enough, and their speeds add up.
        within = max(within, sum(size for size in sizes if size >= LEAST_CORES))
    each = number // ask.ranks
    return max(float(threads(ask.ranks, min(within, each))), ACROSS_NODES * threads(ask.ranks, each))


def fair_shares(
    cores: Sequence[Core], asks: Sequence[Ask], *, kept: int = 0, shared: bool = False, quota: int | None = None
) -> list[float]:
    """Returns the speed that is fair for each service on a host with these cores, of which the system keeps `kept`.

    What the conf fixes comes first, for the one who fixes it and for the others: a count of cores is the fastest ones
    that are left, and no more of the quota than its threads use. The others share the rest by weight, but for a core
    that the services with CPUs=shared have together (`shared`). Their shares are whole cores, one for each rank at the
    least, and what is fair is the best speed that a service can have with so many cores of this host, were it alone
    there with those that have a count. Where not all can have fast cores, nobody's share is more than the cores that
    are left for it.
    """
    rest = sorted(cores, key=lambda core: (-core.capacity, core.numa_node))[: max(1, len(cores) - kept)]
    # The cores to compute on; slower ones load data, and are for those who find no other.
    number = _fastest_set([core.capacity for core in rest], quota, cut=False)[0]
    fair = [0.0] * len(asks)
    left = quota
    for i in sorted(range(len(asks)), key=lambda i: -asks[i].count):
        count = asks[i].count
        if count:
            fair[i] = best_speed(rest, asks[i], count, quota)
            rest, number = rest[count:], max(0, number - count)
            left = None if left is None else max(0, left - count)
    autos = [i for i, ask in enumerate(asks) if not ask.count]
    needed = sum(asks[i].ranks for i in autos)
    capacities = [core.capacity for core in rest]
    fast = capacities[:number] if needed <= number else capacities
    if shared and len(fast) == len(rest) > needed:
        fast = fast[:-1]
    if shared and left is not None and left > needed:
        left -= 1
    number, speed = _fastest_set(fast, left)
    if needed > number:
        # Those that need the fewest cores get the fastest of them: so the most is left for the others.
        weights = sum(ask.weight for ask in (asks[i] for i in autos))
        for i in sorted(autos, key=lambda i: (asks[i].ranks, -asks[i].weight)):
            needed -= asks[i].ranks
            mine = _fewest_for(rest, asks[i], speed * asks[i].weight / weights, len(fast[:number]), needed)
            at_a_time = len(mine) if quota is None else min(len(mine), quota)
            ideal = min(speed * asks[i].weight / weights, at_a_time * min((c.capacity for c in mine), default=0.0))
            fair[i] = ideal if len(mine) == asks[i].ranks else min(ideal, best_speed(mine, asks[i], len(mine), quota))
            rest, number = rest[len(mine) :], max(0, number - len(mine))
        return fair
    each = speed / number if number else 0.0
    # Fast cores that counts have are nobody else's: equal ranks cannot make up for them with the odd slower one.
    alike = len({core.capacity for core in cores}) == 1
    for i, share in zip(autos, _by_weight(speed, [asks[i] for i in autos], each), strict=True):
        whole = max(asks[i].ranks, int(share / each + 1e-9))
        mine = cores if alike or asks[i].ranks == 1 else rest
        fair[i] = min(share, best_speed(mine, asks[i], whole, quota))
    return fair


def _fewest_for(cores: Sequence[Core], ask: Ask, wanted: float, fast: int, kept: int) -> Sequence[Core]:
    """Returns the first of the cores with which a service has the speed that is wanted, a core for each rank at the
    least. Only of those that are not `fast` it has more, and `kept` are for others."""
    least = ask.ranks
    if fast >= least:
        return cores[:least]
    best, number = 0.0, least
    for size in range(least, len(cores) - kept + 1, least):
        speed = size * cores[size - 1].capacity
        if best >= wanted:
            break
        if speed > best:
            best, number = speed, size
    return cores[:number]


def _by_weight(speed: float, asks: Sequence[Ask], core: float) -> list[float]:
    """Returns the parts of `speed` by weight, of which none is less than a `core` for each rank."""
    fixed: dict[int, float] = {}
    while True:
        left = speed - sum(fixed.values())
        weights = sum(ask.weight for i, ask in enumerate(asks) if i not in fixed)
        shares = [fixed.get(i, left * ask.weight / weights if weights else 0.0) for i, ask in enumerate(asks)]
        less = {i: ask.ranks * core for i, ask in enumerate(asks) if shares[i] < ask.ranks * core - 1e-9}
        if not less:
            return shares
        fixed.update(less)
