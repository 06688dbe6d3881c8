"""The measure of a placement: what waits for the slowest, and what adds up."""

from __future__ import annotations

import pytest

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.cores import Core
from torchpar.placement.quality import (
    Quality,
    fair_shares,
    host_speed,
    inference_speed,
    process_speed,
    total,
    training_speed,
)


def core(number: int, node: int = 0, capacity: float = 1.0) -> Core:
    """One of a host's cores."""
    return Core(CpuSet([number]), 0, node, 0, capacity)


def test_a_process_is_its_threads_at_the_speed_of_its_slowest_core() -> None:
    """Less where its memory is on several nodes."""
    assert process_speed([core(0), core(1), core(2, capacity=0.5)]) == 1.5
    assert process_speed([core(0), core(1)], 1) == 1
    assert process_speed([core(0), core(1, node=1)]) == pytest.approx(1.8)
    assert process_speed([]) == 0


def test_ranks_wait_for_the_slowest_and_inference_processes_for_nobody() -> None:
    """18 threads and 1 thread do the work of 2."""
    assert training_speed([18, 1]) == 2 and inference_speed([18, 1]) == 19


def test_a_host_is_as_fast_as_the_best_set_from_the_fastest_core_down() -> None:
    """One fastest core is worth less than five, but eight cores as slow as the slowest are worth less too."""
    kinds = [(280, 3), (855, 4), (1024, 1)]
    cores = [core(0, capacity=capacity / 1024) for capacity, number in kinds for _ in range(number)]
    assert host_speed(cores) == pytest.approx(5 * 855 / 1024)


@pytest.mark.parametrize(
    ("speed", "weights", "ranks", "largest", "expected"),
    [
        (32, [100, 100], [1, 1], 32, [16, 16]),
        (10, [300, 100], [1, 1], 32, [7, 2]),
        (10, [100], [4], 32, [8]),
        (2, [100, 100, 100], [1, 1, 1], 2, [2 / 3] * 3),
        (32, [100], [1], 16, [32 * 0.9]),
        (17, [100], [1], 16, [16]),
        (32, [100], [2], 16, [32]),
    ],
)
def test_a_fair_share_is_what_a_service_can_use_of_its_weight(
    speed: float, weights: list[int], ranks: list[int], largest: int, expected: list[float]
) -> None:
    """Whole cores, equal ranks, and a process that is larger than a node in the better of two ways."""
    assert fair_shares(speed, weights, ranks, largest) == pytest.approx(expected)


def test_what_one_service_has_too_much_makes_up_for_nothing() -> None:
    """31 of 32 cores for one of two services."""
    assert total([Quality(31, 16), Quality(1, 16)]) == pytest.approx(17 / 32)
    assert total([]) == 1
