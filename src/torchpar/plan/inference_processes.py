"""A share's cores to the processes of an inference service: one for each place with a memory or a cache of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.claims import Reason
from torchpar.placement.cores import Core
from torchpar.placement.quality import LEAST_CORES


def split_places(cores: Sequence[Core]) -> tuple[list[list[Core]], Reason]:
    """The cores of each process, and why so many.

    One for each core complex; where those have too few cores, one for each NUMA node; where those have too few, one.
    """
    levels: tuple[tuple[str, Callable[[Core], tuple[int, int]]], ...] = (
        ("core complex", lambda core: (core.numa_node, core.core_complex)),
        ("NUMA node", lambda core: (core.numa_node, -1)),
    )
    for what, place in levels:
        parts: dict[tuple[int, int], list[Core]] = {}
        for core in sorted(cores, key=lambda core: (place(core), core.cpus.first())):
            parts.setdefault(place(core), []).append(core)
        if len(parts) > 1 and all(len(part) >= LEAST_CORES for part in parts.values()):
            sizes = CpuSet(len(part) for part in parts.values())
            return list(parts.values()), Reason(
                "Processes", str(len(parts)), f"one for each {what} of its share, with {sizes} cores each"
            )
    why = f"its {len(cores)} cores are not in several places of {LEAST_CORES} or more with their own cache or memory"
    return [list(cores)], Reason("Processes", "1", why)
