"""Where each rank is, by its own process, whatever a job says of itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.records import make_record
from tests.unit.verify.test_compare import PLAN, PROCESS, RANK, RUNNING
from torchpar.contract.cpulist import CpuSet
from torchpar.verify.ranks import RankState, rank_states, world_size

TWO: dict[str, Any] = {
    **PLAN,
    "cpus": "0-3",
    "ranks": [
        {"local_rank": 0, "cpus": "0-1", "numa_nodes": "0", "threads": 2},
        {"local_rank": 1, "cpus": "2-3", "numa_nodes": "1", "threads": 2},
    ],
}
FIRST = replace(PROCESS, runnable_threads=2)
SECOND = replace(PROCESS, pid=11, threads={11: CpuSet([2, 3]), 12: CpuSet([2, 3])}, pages={0: 1, 1: 3})
RUNS = replace(RUNNING, processes=(FIRST, SECOND), ranks=(RANK, replace(RANK, pid=11, local_rank=1)))


def test_each_rank_is_on_its_own_cpus_and_nodes() -> None:
    """On those of another it is not, though they are the service's."""
    assert rank_states(make_record(TWO), RUNS, None) == (RankState(0, True, 0.99, 2), RankState(1, True, 0.75, 0))
    swapped = replace(RUNS, processes=(FIRST, replace(SECOND, threads={11: CpuSet([0, 1])})))
    assert [rank.affinity_ok for rank in rank_states(make_record(TWO), swapped, None)] == [True, False]


def test_what_cannot_be_read_is_unknown() -> None:
    unread = replace(FIRST, threads=None, pages=None)
    assert rank_states(make_record(PLAN), replace(RUNS, processes=(unread,)), None) == (RankState(0, None, None, None),)


def test_a_job_adds_no_ranks_and_none_twice() -> None:
    """Of two metrics with the same labels Prometheus would take none at all; of another's process nothing is said."""
    said = (RANK, RANK, replace(RANK, pid=1), replace(RANK, local_rank=7), replace(RANK, local_rank=-1))
    (only,) = rank_states(make_record(PLAN), replace(RUNS, ranks=said), None)
    assert only.local_rank == 0


@pytest.mark.parametrize(
    ("sizes", "told"), [((8, 8), 8), ((8, 4), None), ((None, None), None), ((0, 0), None), ((10**30, 10**30), None)]
)
def test_the_size_of_the_world_is_what_all_say(sizes: tuple[int | None, ...], told: int | None) -> None:
    ranks = tuple(replace(rank, world_size=size) for rank, size in zip(RUNS.ranks, sizes, strict=True))
    gone = replace(RANK, pid=99, local_rank=2, world_size=3)
    assert world_size(replace(RUNS, ranks=(*ranks, gone))) == told
