"""Cores to ranks: equal ones, each on one NUMA node where that is not slower."""

from __future__ import annotations

import pytest

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.cores import Core
from torchpar.placement.split import split_cores, split_nodes


def cores(*nodes: int) -> list[Core]:
    """As many cores on each node."""
    numbers = [node for node, number in enumerate(nodes) for _ in range(number)]
    return [Core(CpuSet([cpu]), 0, node, node) for cpu, node in enumerate(numbers)]


def text(parts: list[list[Core]]) -> str:
    """The CPUs of each part."""
    return " ".join(str(CpuSet.union(core.cpus for core in part)) for part in parts)


@pytest.mark.parametrize(
    ("nodes", "count", "expected"),
    [
        ((8,), 1, "0-7"),
        ((8,), 3, "0-2 3-5 6-7"),
        ((4, 4), 2, "0-3 4-7"),
        ((4, 4), 3, "0-1 2-3 4-6"),
        ((4, 4), 1, "0-7"),
        ((9, 3), 2, "0-5 6-11"),
        ((5, 3), 2, "0-3 4-7"),
        ((11, 9), 2, "0-9 11-19"),
        ((6, 2, 2), 5, "0-1 2-3 4-5 6-7 8-9"),
        ((3, 3, 3), 4, "0-1 2,5 3-4 6-8"),
        ((1, 1, 1), 2, "0 1"),
    ],
)
def test_ranks_are_equal_and_cross_no_node_where_that_is_not_slower(
    nodes: tuple[int, ...], count: int, expected: str
) -> None:
    """A rank across nodes counts nine tenths."""
    assert sorted(text(split_cores(cores(*nodes), count)).split()) == sorted(expected.split())


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ((4, 4), "0-3 4-7"),
        ((18, 1), "0-17"),
        ((2, 5, 5, 5, 4, 5, 5, 5), "2-6 7-11 12-16 21-25 26-30 31-35"),
        ((13, 6, 6), "0-6 13-18 19-24"),
        ((3, 1, 1), "0-1 3 4"),
        ((5, 4), "0-4 5-8"),
    ],
)
def test_a_rank_for_each_node_takes_equal_parts_or_fewer_nodes(nodes: tuple[int, ...], expected: str) -> None:
    """Whatever is more together; ranks may differ by one core."""
    assert text(split_nodes(cores(*nodes), 9)) == expected
