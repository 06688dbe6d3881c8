"""Divides a share's cores among an inference service's processes: one for each place with its own memory or cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.claims import Reason
from torchpar.placement.cores import Core
from torchpar.placement.quality import LEAST_CORES, inference_speed, process_speed
from torchpar.placement.split import split_alike

# What is given up of the speed for processes that have a cache or a memory of their own.
_NEARLY = 0.95


def split_places(cores: Sequence[Core], quota: int | None) -> tuple[list[list[Core]], Reason]:
    """Divides the cores among processes, and says why there are so many.

    One for each core complex; where those have too few cores, one for each NUMA node; where those have too few, one.
    Another way is taken where that is clearly faster. A process is without cores that are so slow that it waits for
    them, and has none where that leaves it too few; processes of slower cores alone wait for nobody. `quota` is how
    many cores compute at a time.
    """
    levels: tuple[tuple[str, Callable[[Core], tuple[float, ...]]], ...] = (
        ("core complex", lambda core: (core.numa_node, core.core_complex)),
        ("NUMA node", lambda core: (core.numa_node,)),
        ("kind of cores of each NUMA node", lambda core: (core.numa_node, core.capacity)),
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
    speeds = [_speed(parts, quota) for _, parts in ways]
    what, parts_of_way = next(way for way, speed in zip(ways, speeds, strict=True) if speed >= _NEARLY * max(speeds))
    if what:
        sizes = CpuSet(len(part) for part in parts_of_way)
        why = f"one for each {what} of its share, with {sizes} cores each"
        return parts_of_way, Reason("Processes", str(len(parts_of_way)), why)
    why = f"its {len(cores)} cores are not in several places of {LEAST_CORES} or more with their own cache or memory"
    return parts_of_way, Reason("Processes", "1", why)


def _fastest(cores: Sequence[Core], quota: int | None) -> list[Core]:
    return split_alike(cores, lambda alike: [list(alike)], quota)[0]


def _speed(parts: Sequence[Sequence[Core]], quota: int | None) -> float:
    threads = None if quota is None else max(1, quota // len(parts))
    return inference_speed(process_speed(part, threads) for part in parts)
