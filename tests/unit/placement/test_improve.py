"""Where the rules leave services less than is fair: what the search finds, what is left over, and who moves for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest

from tests.unit.hosts import make_host, make_hybrid_host
from tests.unit.placement.test_place import kinds_of
from tests.unit.placement.test_staying import apply, in_force
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import CpuKind, Held, HostFacts
from torchpar.placement import quality
from torchpar.placement.quality import Ask
from torchpar.placement.search import Seeker, search
from torchpar.plan.plan import Plan, make_plan
from torchpar.plan.quality import plan_quality


def ranks(plan: Plan) -> dict[str, list[int]]:
    """The threads of each rank, by the service's name."""
    return {service.service.name: [rank.threads for rank in service.ranks] for service in plan.services}


def plan_of(text: str, host: HostFacts) -> tuple[Plan, float]:
    """The plan of enabled services ("a CPUs=2"), and its quality."""
    lines = []
    for line in text.splitlines():
        name, *keys = line.split()
        lines += [f"[Train {name}]", f"Script=/{name}.py", "Enabled=yes", *keys]
    config = parse_config([ConfFile("/c", "\n".join(lines))], host)
    plan = make_plan(config, host)
    return plan, plan_quality(plan, config)


@pytest.mark.parametrize(
    ("host", "text", "expected"),
    [
        (make_host(packages=2, cores_per_complex=20), "a Ranks=numa\nb CPUs=8\nc", {"a": [15], "b": [8], "c": [15]}),
        (make_host(packages=4, cores_per_complex=8), "a Ranks=numa\nb CPUs=2", {"a": [7] * 4, "b": [2]}),
        (make_host(packages=8, cores_per_complex=5), "a Ranks=numa\nb Ranks=numa", {"a": [3] * 6, "b": [2] * 8}),
        (kinds_of((280, 4), (820, 2), (1024, 2)), "a Ranks=2\nb Ranks=3", {"a": [2] * 2, "b": [1] * 3}),
        (kinds_of((440, 4), (1000, 2)), "a CPUs=1\nb CPUs=shared\nc Ranks=2", {"a": [1], "b": [1], "c": [2, 1]}),
    ],
)
def test_equal_ranks_get_the_nodes_that_they_need(host: HostFacts, text: str, expected: dict[str, list[int]]) -> None:
    """A count takes a core of several nodes where whole nodes are worth more to others."""
    plan, measured = plan_of(text, host)
    assert ranks(plan) == expected and measured > 0.9


def test_who_finds_no_fast_core_has_as_many_slower_ones_as_are_fair() -> None:
    """None of the slowest stands idle while two services have one each that is a quarter as fast."""
    plan, _ = plan_of("a\nb\nc\nd\ne\nf", kinds_of((280, 4), (820, 2), (1024, 2)))
    assert [str(service.cpus) for service in plan.services] == ["4", "5", "6", "7", "1-2", "3"]


def test_explain_names_what_was_rejected_and_why() -> None:
    """The rules' first choice, and what it would cost."""
    plan, _ = plan_of("a Ranks=numa\nb CPUs=2", make_host(packages=4, cores_per_complex=8))
    assert [reason.why for reason in plan.services[0].reasons if reason.key == "CPUs"][1:] == [
        "so that all services together have 99% of their fair shares; with CPUs 9-31 here, the rules' first choice, "
        "they have 77%"
    ]


def test_what_equal_ranks_leave_over_is_for_shared_services() -> None:
    """Nobody holds a core that nothing of its own runs on; a count holds what it asked for."""
    host = make_host(packages=3, cores_per_complex=3)
    plan, _ = apply("a Ranks=2\nb CPUs=shared", host)
    assert [service.cores for service in plan.services] == [8, 1]
    plan, _ = apply("a Ranks=numa\nb CPUs=1\nc CPUs=shared", make_host(packages=2, cores_per_complex=4))
    assert [service.cores for service in plan.services] == [6, 1, 1]
    plan, _ = apply("a Ranks=3 CPUs=5", make_host(cores_per_complex=8))
    assert plan.services[0].cores == 5 and ranks(plan) == {"a": [2, 2, 1]}


@pytest.mark.parametrize(("quota", "threads", "loaders"), [(None, 4, "8-11"), (2.0, 2, "8-11")])
def test_a_count_that_reaches_slower_cores_loads_data_on_them(
    quota: float | None, threads: int, loaders: str
) -> None:
    """Four fast cores are faster than seven of which three are slow; nobody else gets those three."""
    kinds = tuple(dataclasses.replace(kind, capacity=kind.capacity**2) for kind in make_hybrid_host().cpu_kinds)
    host = dataclasses.replace(make_hybrid_host(), cpu_kinds=kinds, cpu_limit=quota)
    plan, _ = apply("a CPUs=7", host)
    (service,) = plan.services
    assert (str(service.cpus), str(service.loader_cpus), ranks(plan)) == ("0-7", loaders, {"a": [threads]})
    assert any("3 of its 7 cores are so slow that it is faster without" in warning for warning in service.warnings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a CPUs=1", ["8"]), ("a CPUs=1\nb", ["8", "5-7"]), ("a CPUs=2\nb CPUs=2", ["8-9", "1-2"])],
)
def test_which_cores_are_beyond_a_quota_is_decided_by_what_services_need(text: str, expected: list[str]) -> None:
    """A single job has four slower cores of one node; two faster ones of the other are no loss for it."""
    slow, fast = CpuKind(CpuSet(range(8)), 0, 5 / 7), CpuKind(CpuSet([8, 9]), 1, 1.0)
    host = dataclasses.replace(make_host(packages=2, cores_per_complex=5), cpu_kinds=(slow, fast), cpu_limit=4.0)
    plan, measured = plan_of(text, host)
    assert [str(service.cpus) for service in plan.services] == expected and measured == 1.0
    beyond = {cpu for cpu, why in plan.left_out.items() if "beyond" in why}
    assert len(beyond) == 5 and beyond.isdisjoint(cpu for service in plan.services for cpu in service.cpus)


def test_services_that_are_more_than_the_quota_have_the_fastest_cores_beyond_it() -> None:
    """Eight cores for a quota of seven CPUs: the one that is given away is not the only one that may be exchanged."""
    slow, fast = CpuKind(CpuSet(range(20)), 0, 5 / 7), CpuKind(CpuSet(range(20, 24)), 1, 1.0)
    host = dataclasses.replace(make_host(packages=2, cores_per_complex=12), cpu_kinds=(slow, fast), cpu_limit=7.5)
    text = "a\nb\nc\nd\ne Ranks=4"
    plan, measured = plan_of(text, host)
    held = CpuSet.union(service.cpus for service in plan.services)
    assert CpuSet(range(20, 24)) <= held and len(held) == 8 and measured == 1.0
    (warning,) = plan.warnings
    assert warning.startswith("CPUs 20 are beyond the CPU quota of 7.5 CPUs, but services need them")
    again, _ = plan_of(text, dataclasses.replace(host, in_force=in_force(plan)))
    assert [service.cpus for service in again.services] == [service.cpus for service in plan.services]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a CPUs=8", ["4-7"]),
        ("a CPUs=8 Ranks=2", ["4-5", "6-7"]),
        ("a CPUs=8 Ranks=3", ["1-3", "4-5", "6-7"]),
        ("a CPUs=4", ["4-7"]),
    ],
)
def test_a_count_beyond_the_quota_has_the_cores_that_lie_together(text: str, expected: list[str]) -> None:
    """Four threads on eight cores of two nodes would reach over to the other node for nothing."""
    host = dataclasses.replace(make_host(packages=4, cores_per_complex=4), cpu_limit=4.0)
    plan, measured = plan_of(text, host)
    (service,) = plan.services
    assert [str(rank.cpus) for rank in service.ranks] == expected and measured == 1.0
    told = "lets 4 of its 8 cores compute at a time, so it has the 4 that lie together"
    assert any(told in warning for warning in service.warnings) == (text != "a CPUs=4" and "3" not in text)


def test_the_number_of_ranks_does_not_follow_who_came_first() -> None:
    """Two services on a node each leave ranks of two cores; afresh they are on one node, and the ranks on the other."""
    held = {"torchpar-train@s.service": Held(CpuSet([0, 1])), "torchpar-train@t.service": Held(CpuSet([4, 5]))}
    host = make_host(packages=2, cores_per_complex=4)
    text = "s CPUs=2\nt CPUs=2\nr Ranks=numa"
    afresh, _ = apply(text, host)
    plan, used = apply(text, dataclasses.replace(host, in_force=held))
    assert ranks(plan) == ranks(afresh) == {"s": [2], "t": [2], "r": [4]}
    assert str(plan.find("torchpar-train@s.service").cpus) == "0-1"
    again, _ = apply(text, used)
    assert [service.cpus for service in again.services] == [service.cpus for service in plan.services]


@pytest.mark.parametrize("capacities", [(1.0,), (0.8, 1.0)])
@pytest.mark.parametrize("asks", [[Ask(by_node=True), Ask(ranks=3)], [Ask(trains=False), Ask(count=9)]])
def test_a_search_ends_after_so_many_steps(
    capacities: tuple[float, ...], asks: list[Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ways there are: 64 nodes of different sizes, and 20 services; what it costs is measured by cells."""
    looked = 0
    real = quality.speed_on

    def speed_on(cells: Iterable[tuple[int, float, int]], *others: Any) -> float:
        nonlocal looked
        cells = list(cells)
        looked += len(cells)
        return real(cells, *others)

    monkeypatch.setattr("torchpar.placement.search.speed_on", speed_on)
    free = {(node, capacity): 3 + node % 7 for node in range(64) for capacity in capacities}
    found = search(free, [Seeker(ask, 19.0) for ask in asks for _ in range(10)])
    assert len(found) == 20
    for cell, number in free.items():
        assert sum(amounts.get(cell, 0) for amounts in found) <= number
    assert looked < 100_000


@pytest.mark.parametrize("ask", [Ask(trains=False), Ask(by_node=True), Ask(ranks=2)])
def test_of_equal_ways_the_search_takes_the_fewest_nodes(ask: Ask) -> None:
    """Each of them would have a rank or a copy of the model on each of its nodes."""
    free = {(0, 1.0): 4, (1, 1.0): 4, (2, 1.0): 8}
    assert search(free, [Seeker(ask, 8.0)]) == [{(2, 1.0): 8}]
