"""How good a placement is: what its services get of the host's speed.

Speed is counted in cores of the fastest kind. Synchronous ranks and the loops of OpenMP wait for the slowest thread, so
a process is as fast as its threads times its slowest core, and a training service as its ranks times the slowest of
them. The processes of an inference service wait for nobody: their speeds add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchpar.placement.cores import Core

# What is left of the speed of a process whose memory is on several NUMA nodes.
ACROSS_NODES = 0.9


def process_speed(cores: Sequence[Core], threads: int | None = None) -> float:
    """The speed of a process with these cores; `threads` compute, one on each core unless it is said."""
    if not cores:
        return 0.0
    across = ACROSS_NODES if len({core.numa_node for core in cores}) > 1 else 1.0
    number = len(cores) if threads is None else min(threads, len(cores))
    return across * number * min(core.capacity for core in cores)


def training_speed(ranks: Iterable[float]) -> float:
    """The speed of a training service by the speeds of its ranks."""
    speeds = list(ranks)
    return len(speeds) * min(speeds, default=0.0)


def inference_speed(processes: Iterable[float]) -> float:
    """The speed of an inference service by the speeds of its processes."""
    return sum(processes)


def host_speed(cores: Iterable[Core]) -> float:
    """The speed of the fastest single process that these cores could run, their NUMA nodes aside."""
    capacities = sorted((core.capacity for core in cores), reverse=True)
    return max((number * capacity for number, capacity in enumerate(capacities, 1)), default=0.0)


@dataclass(frozen=True)
class Quality:
    """The speed that a service has, and the one that is its fair share."""

    got: float
    fair: float


def total(qualities: Iterable[Quality]) -> float:
    """The quality of a plan: what its services get, each up to its fair share, of all of their fair shares."""
    each = list(qualities)
    fair = sum(one.fair for one in each)
    return sum(min(one.got, one.fair) for one in each) / fair if fair else 1.0


def fair_shares(speed: float, weights: Sequence[int], ranks: Sequence[int], largest: int) -> list[float]:
    """The share of `speed` that is fair for each of services with these weights and numbers of ranks.

    A service has a whole core at least, and no use for a part of one, or for a core that one of its equal ranks lacks.
    A process that is larger than the `largest` NUMA node has its cores across nodes.
    """
    shares = []
    for weight, count in zip(weights, ranks, strict=True):
        ideal = speed * weight / sum(weights)
        size = int(ideal / count + 1e-9)
        within = max(min(size, largest), ACROSS_NODES * size)
        shares.append(max(count, count * within) if ideal >= 1 else min(1.0, ideal))
    return shares
