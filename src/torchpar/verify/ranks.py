"""Says of each rank that tells of itself where its threads and its memory are: what metrics have by rank."""

from __future__ import annotations

from dataclasses import dataclass

from torchpar.contract.given import Given
from torchpar.facts.running import Process, RunningUnit
from torchpar.plan.record import RankRecord, ServiceRecord
from torchpar.verify.compare import planned_sets

# Of any job; what a job says of itself may be wrong.
_MOST_WORLD = 2**20


@dataclass(frozen=True)
class RankState:
    """The process of one rank, less its loader workers; None is what could not be read.

    `memory_local_share` is the share of its memory on the nodes of its CPUs; `runnable_threads` ran or waited for a
    CPU when they were looked at.
    """

    local_rank: int
    affinity_ok: bool | None
    memory_local_share: float | None
    runnable_threads: int | None


def rank_states(plan: ServiceRecord, running: RunningUnit, given: Given | None) -> tuple[RankState, ...]:
    """Compares the process of each planned rank with its plan."""
    processes = {process.pid: process for process in running.processes}
    # Each rank once, whatever a job has written.
    told = {report.local_rank: processes[report.pid] for report in running.ranks if report.pid in processes}
    return tuple(
        _state(plan, rank, told[number], running, given)
        for number, rank in enumerate(plan.ranks)
        if number in told
    )


def _state(
    plan: ServiceRecord, rank: RankRecord, process: Process, running: RunningUnit, given: Given | None
) -> RankState:
    local_rank = rank.local_rank if len(plan.ranks) > 1 else None
    planned = {running.online(cpus) for cpus in planned_sets(plan, given, local_rank)}
    pages = process.pages or {}
    near = sum(count for node, count in pages.items() if node in rank.numa_nodes)
    threads = process.threads
    return RankState(
        rank.local_rank,
        None if threads is None else all(running.online(cpus) in planned for cpus in set(threads.values())),
        near / sum(pages.values()) if rank.numa_nodes and sum(pages.values()) else None,
        None if threads is None else process.runnable_threads,
    )


def world_size(running: RunningUnit) -> int | None:
    """Returns the number of ranks on all hosts, as the ranks here say; None where they do not say it, or not the same.

    An elastic job may have fewer than were planned.
    """
    pids = {process.pid for process in running.processes}
    told = {rank.world_size for rank in running.ranks if rank.pid in pids}
    size = told.pop() if len(told) == 1 else None
    return size if size is not None and 0 < size <= _MOST_WORLD else None
