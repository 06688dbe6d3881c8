"""The measure of a placement: what waits for the slowest, and what adds up."""

from __future__ import annotations

import pytest

from torchpar.contract.cpulist import CpuSet
from torchpar.placement.cores import Core
from torchpar.placement.quality import (
    Ask,
    Quality,
    fair_shares,
    host_speed,
    inference_speed,
    process_speed,
    speed_on,
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
    assert host_speed(cores, 4) == pytest.approx(4 * 855 / 1024)


def test_an_inference_service_has_a_process_for_each_kind_of_cores() -> None:
    """Nobody waits for the slower ones, as ranks do; too few of them have none."""
    infer, cells = Ask(trains=False), [(0, 1.0, 8), (0, 0.5, 8)]
    assert speed_on(cells, infer, None) == 12
    assert speed_on(cells, infer, None, 12) == 10
    assert speed_on([(0, 1.0, 8), (0, 0.5, 3)], infer, None) == 8
    assert speed_on(cells, Ask(), None) == 8


def host(*nodes: str) -> list[Core]:
    """Cores by node: "8" is eight of the fastest kind, "2,6×0.5" has slower ones too."""
    cores = []
    for node, text in enumerate(nodes):
        for part in text.split(","):
            number, _, capacity = part.partition("×")
            cores += [core(len(cores) + i, node, float(capacity or 1)) for i in range(int(number))]
    return cores


@pytest.mark.parametrize(
    ("nodes", "asks", "expected"),
    [
        (["32"], [Ask(), Ask()], [16, 16]),
        (["10"], [Ask(weight=300), Ask(weight=100)], [7, 2]),
        (["10"], [Ask(ranks=4)], [8]),
        (["16", "16"], [Ask()], [32 * 0.9]),
        (["16", "1"], [Ask()], [16]),
        (["16", "16"], [Ask(ranks=2)], [32]),
        (["16", "16"], [Ask(trains=False)], [32]),
        (["5", "4", "2", "1"], [Ask(by_node=True)], [8]),
        (["8"], [Ask(count=5), Ask(), Ask()], [5, 1, 1]),
        (["8"], [Ask(ranks=5), Ask()], [5, 3]),
        (["4,4×0.5"], [Ask(count=6), Ask()], [4, 1]),
        (["2,2×0.5"], [Ask(), Ask(), Ask()], [2 / 3, 2 / 3, 2 / 3]),
        (["2,2×0.8,3×0.25"], [Ask()] * 6, [3.2 / 6] * 4 + [0.5, 0.25]),
    ],
)
def test_a_fair_share_is_what_a_service_can_use_of_its_weight(
    nodes: list[str], asks: list[Ask], expected: list[float]
) -> None:
    """Whole cores, equal ranks, nodes as they are; what the conf fixes is taken out of the share of all."""
    assert fair_shares(host(*nodes), asks) == pytest.approx(expected)


def test_what_the_system_and_shared_services_need_is_nobodys_share() -> None:
    """A shared service has the slower cores where there are any."""
    assert fair_shares(host("8"), [Ask()], kept=1, shared=True) == [6]
    assert fair_shares(host("8,1×0.25"), [Ask()], kept=1, shared=True) == [7]
    assert fair_shares(host("8,2×0.25"), [Ask()], kept=1, shared=True) == [8]


def test_a_quota_is_shared_and_a_count_takes_no_more_of_it_than_its_threads() -> None:
    """Eight cores compute no more than the quota does, and on slower cores less."""
    assert fair_shares(host("16"), [Ask(count=8)], quota=4) == [4]
    assert fair_shares(host("16"), [Ask(count=2), Ask()], quota=4) == [2, 2]
    assert fair_shares(host("1,8×0.25"), [Ask()], quota=2) == [1]
    assert fair_shares(host("1,8×0.25"), [Ask(ranks=4)], quota=2) == [0.5]
    assert fair_shares(host("16"), [Ask()], shared=True, quota=4) == [3]
    assert fair_shares(host("4", "4"), [Ask(count=6, by_node=True)], quota=1) == [1]


def test_what_one_service_has_too_much_makes_up_for_nothing() -> None:
    """31 of 32 cores for one of two services."""
    assert total([Quality(31, 16), Quality(1, 16)]) == pytest.approx(17 / 32)
    assert total([]) == 1
