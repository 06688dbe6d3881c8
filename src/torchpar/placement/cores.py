"""Chooses the cores that lie together.

A core is its usable CPUs with the places it is in. It is the unit of placement: no service gets a part of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet

# The distance between two NUMA nodes, by their ids.
Distance = Callable[[int, int], int]


@dataclass(frozen=True)
class Core:
    """A core's usable CPUs, and the ids of what it is in: numbers that only tell places apart, -1 for unknown.

    `capacity` is how fast it computes: 1 for the fastest kind of the host.
    """

    cpus: CpuSet
    package: int
    numa_node: int
    core_complex: int
    capacity: float = 1.0


Cores = tuple[Core, ...]


# Cores of one kind belong together first: a process is as fast as its slowest core.
_LEVELS: tuple[Callable[[Core], tuple[float, ...]], ...] = (
    lambda core: (-core.capacity, core.package, core.numa_node, core.core_complex),
    lambda core: (-core.capacity, core.package, core.numa_node),
    lambda core: (-core.capacity, core.package),
)


def choose_cores(
    free: Sequence[Core],
    count: int,
    *,
    near: CpuSet | None = None,
    kept: Sequence[Core] = (),
    distance: Distance,
) -> tuple[Core, ...]:
    """Returns the `count` of the `free` cores that lie best together, in the order of their CPUs.

    Those `kept` are among them, the others then beside these. Else first cores on the nodes `near`; then the fastest,
    and of equal ones a whole NUMA node, a whole L3 group, cores of one L3 group, of one node, of one package, anything;
    among equals the place with the fewest cores left over. `count` is at most the free cores.
    """
    if kept:
        return _in_order(_beside(free, count, near or CpuSet(), kept, distance))
    if near:
        close = [core for core in free if core.numa_node in near]
        if len(close) < count:
            others = [core for core in free if core.numa_node not in near]
            return _in_order([*close, *_together(others, count - len(close), distance, close)])
        free = close
    return _in_order(_together(list(free), count, distance, []))


def _beside(free: Sequence[Core], count: int, near: CpuSet, kept: Sequence[Core], distance: Distance) -> list[Core]:
    """Chooses `kept` and the cores that are nearest to them: of their L3 groups, nodes, packages; then the nearest
    node's."""
    chosen = list(kept)
    own = set(kept)
    others = [core for core in free if core not in own]
    for level in _LEVELS:
        places = {level(core) for core in kept}
        for group in _groups([core for core in others if level(core) in places], level):
            room = count - len(chosen)
            chosen += group if len(group) <= room else _together(group, room, distance, chosen)
        taken = set(chosen)
        others = [core for core in others if core not in taken]
    close = [core for core in others if core.numa_node in near]
    for part in (close, [core for core in others if core.numa_node not in near]):
        chosen += _together(part, min(len(part), count - len(chosen)), distance, chosen)
    return chosen


def _together(free: list[Core], count: int, distance: Distance, beside: list[Core]) -> list[Core]:
    if count <= 0:
        return []
    if count >= len(free):
        return free
    # A process is as fast as its slowest core: none is slower than it must be.
    slowest = sorted((core.capacity for core in free), reverse=True)[count - 1]
    free = [core for core in free if core.capacity >= slowest]
    if count == len(free):
        return free
    in_complex, in_node = (_groups(free, level) for level in _LEVELS[:2])
    exact = [g for g in (*in_node, *in_complex) if len(g) == count]
    if exact:
        return min(exact, key=lambda g: (_remoteness(g, beside, distance), -len(g), _first_cpu(g[0])))
    for level in range(len(_LEVELS)):
        candidates = (in_complex, in_node)[level] if level < 2 else _groups(free, _LEVELS[level])
        fitting = [g for g in candidates if len(g) > count]
        if fitting:
            best = min(fitting, key=lambda g: (_remoteness(g, beside, distance), len(g), _first_cpu(g[0])))
            return (
                best[:count] if level == 0 else _fill(best, _groups(best, _LEVELS[level - 1]), count, distance, beside)
            )
    in_package = candidates
    widest = in_package if len(in_package) > 1 else in_node if len(in_node) > 1 else in_complex
    return _fill(free, widest, count, distance, beside)


def _fill(
    free: list[Core],
    groups: list[list[Core]],
    count: int,
    distance: Distance,
    beside: list[Core],
) -> list[Core]:
    """Takes whole groups while they fit, the next always the nearest and then the largest; the rest from one place."""
    taken: list[Core] = []
    groups = list(groups)
    while True:
        fitting = [g for g in groups if len(g) <= count - len(taken)]
        if not fitting:
            break
        neighbours = [*beside, *taken]
        group = min(fitting, key=lambda g: (_remoteness(g, neighbours, distance), -len(g), _first_cpu(g[0])))
        groups.remove(group)
        taken += group
    if len(taken) == count:
        return taken
    chosen = set(taken)
    rest = [core for core in free if core not in chosen]
    return taken + _together(rest, count - len(taken), distance, [*beside, *taken])


def _groups(cores: Sequence[Core], level: Callable[[Core], tuple[float, ...]]) -> list[list[Core]]:
    groups: dict[tuple[float, ...], list[Core]] = {}
    for core in cores:
        groups.setdefault(level(core), []).append(core)
    return list(groups.values())


def _remoteness(group: list[Core], beside: list[Core], distance: Distance) -> int:
    return distance(beside[0].numa_node, group[0].numa_node) if beside else 0


def _first_cpu(core: Core) -> int:
    return core.cpus.first()


def _in_order(cores: Iterable[Core]) -> tuple[Core, ...]:
    return tuple(sorted(cores, key=_first_cpu))
