"""Divides a share's cores among the places of an inference service, each with its own memory or cache."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.claims import Reason
from torchpar.placement.cores import Core
from torchpar.placement.quality import LEAST_CORES, inference_speed, process_speed
from torchpar.placement.split import split_alike

# What is given up of the speed for processes that have a cache or a memory of their own.
_NEARLY = 0.95

# The same for a service with CPUs=shared, which others run beside: each copy of the model costs them memory and cache.
_NEARLY_SHARED = 0.8


def split_places(cores: Sequence[Core], quota: int | None, *, shared: bool = False) -> tuple[list[list[Core]], Reason]:
    """Divides the cores among processes, and says why there are so many.

    One for each core complex; where those have too few cores, one for each NUMA node; where those have too few, one.
    Another way is taken where that is clearly faster. A process is without cores that are so slow that it waits for
    them, and has none where that leaves it too few; processes of slower cores alone wait for nobody. `quota` is how
    many cores compute at a time. A `shared` service has one process, unless several are much faster.
    """
    kinds = _kinds(cores)
    levels: tuple[tuple[str, Callable[[Core], tuple[float, ...]]], ...] = (
        ("core complex", lambda core: (core.numa_node, core.core_complex)),
        ("NUMA node", lambda core: (core.numa_node,)),
        ("kind of cores of each NUMA node", lambda core: kinds[core.numa_node, core.capacity]),
    )
    ways: list[tuple[str, list[list[Core]]]] = []
    for what, place in levels:
        parts: dict[tuple[float, ...], list[Core]] = {}
        for core in sorted(cores, key=lambda core: (place(core), core.cpus.first())):
            parts.setdefault(place(core), []).append(core)
        large = [_fastest(part, None) for part in parts.values()]
        large = [part for part in large if len(part) >= LEAST_CORES]
        if len(large) > 1:
            ways.append((what, large))
    alone = _fastest(cores, quota)
    ways.append(("", [alone]))
    speeds = [places_speed(parts, quota) for _, parts in ways]
    several = len(ways) > 1
    if shared and speeds[-1] >= _NEARLY_SHARED * max(speeds):
        ways, speeds = ways[-1:], speeds[-1:]
    what, parts_of_way = next(way for way, speed in zip(ways, speeds, strict=True) if speed >= _NEARLY * max(speeds))
    if what:
        sizes = CpuSet(len(part) for part in parts_of_way)
        why = f"one for each {what} of its share, with {sizes} cores each"
        return parts_of_way, Reason("Places", str(len(parts_of_way)), why)
    why = f"its {len(cores)} cores are not in several places of {LEAST_CORES} or more with their own cache or memory"
    if several and shared:
        why = "CPUs=shared, and more copies of its models would not be much faster"
    return parts_of_way, Reason("Places", "1", why)


def places_speed(parts: Sequence[Sequence[Core]], quota: int | None) -> float:
    """Returns the speed of the processes of an inference service, where `quota` of all cores compute at a time."""
    threads = None if quota is None else max(1, quota // len(parts))
    return inference_speed(process_speed(part, threads) for part in parts)


def _kinds(cores: Sequence[Core]) -> dict[tuple[int, float], tuple[int, float]]:
    """Returns the NUMA node and the slowest capacity of the process of each kind of cores.

    Kinds that are nearly as fast together are one: there may be five that differ by a few per cent.
    """
    numbers = Counter((core.numa_node, core.capacity) for core in cores)
    kinds: dict[tuple[int, float], tuple[int, float]] = {}
    for node in {node for node, _ in numbers}:
        groups = [
            _Kinds((capacity,), number, capacity * number if number >= LEAST_CORES else 0.0)
            for (of, capacity), number in sorted(numbers.items())
            if of == node
        ]
        while True:
            # The slower of two neighbours, and what is left of their speed when one process has both.
            left = [
                ((a.number + b.number) * a.capacities[0] / max(a.alone + b.alone, 1e-9), i)
                for i, (a, b) in enumerate(itertools.pairwise(groups))
            ]
            most, i = max(left, default=(0.0, 0))
            if most < _NEARLY:
                break
            a, b = groups[i : i + 2]
            groups[i : i + 2] = [_Kinds((*a.capacities, *b.capacities), a.number + b.number, a.alone + b.alone)]
        for group in groups:
            kinds.update(dict.fromkeys(((node, each) for each in group.capacities), (node, group.capacities[0])))
    return kinds


@dataclass(frozen=True)
class _Kinds:
    """Kinds of cores of a process, the slowest first; how many they are, and how fast with a process each."""

    capacities: tuple[float, ...]
    number: int
    alone: float


def _fastest(cores: Sequence[Core], quota: int | None) -> list[Core]:
    return split_alike(cores, lambda alike: [list(alike)], quota)[0]
