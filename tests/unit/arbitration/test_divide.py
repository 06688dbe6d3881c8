"""How the CPUs of services that run are divided, on machines of several shapes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from tests.unit.hosts import make_host
from torchpar.arbitration.divide import Tenant, TenantRank, divide
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts


def tenant(unit: str, *ranks: str, keeps: bool = False, weight: int = 100, fixed_threads: bool = False) -> Tenant:
    """A service with a rank on each of these CPU lists, one thread for each CPU."""
    lists = [CpuSet.parse(rank) for rank in ranks]
    made = tuple(TenantRank(cpus, len(cpus)) for cpus in lists)
    return Tenant(unit, made, keeps=keeps, weight=weight, fixed_threads=fixed_threads)


def divided(facts: HostFacts, *tenants: Tenant) -> dict[str, str]:
    """CPUs and threads of each rank, such as "0-1:2 2-3:2"."""
    parts = divide(tenants, facts)
    assert parts == divide(reversed(tenants), facts)
    return {unit: " ".join(f"{rank.cpus}:{rank.threads}" for rank in part.ranks) for unit, part in parts.items()}


FOUR = make_host()


def test_one_that_is_alone_has_what_is_planned() -> None:
    assert divided(FOUR, tenant("a", "0-3")) == {"a": "0-3:4"}


def test_two_started_by_hand_have_half_of_the_cores_each() -> None:
    assert divided(FOUR, tenant("a", "0-3"), tenant("b", "0-3")) == {"a": "0-1:2", "b": "2-3:2"}


def test_weight_decides_how_many_each_has() -> None:
    assert divided(FOUR, tenant("a", "0-3"), tenant("b", "0-3", weight=300)) == {"a": "3:1", "b": "0-2:3"}


def test_a_core_is_never_divided() -> None:
    smt = make_host(cores_per_complex=2, smt=2)
    assert divided(smt, tenant("a", "0-3"), tenant("b", "0-3")) == {"a": "0,2:2", "b": "1,3:2"}


def test_whole_nodes_are_preferred() -> None:
    two_nodes = make_host(nodes_per_package=2)
    assert divided(two_nodes, tenant("a", "0-7"), tenant("b", "0-7")) == {"a": "0-3:4", "b": "4-7:4"}


def test_an_enabled_service_is_never_moved() -> None:
    """And whoever is planned on its CPUs too keeps away from them, if there are others."""
    assert divided(FOUR, tenant("a", "0-1", keeps=True), tenant("b", "0-3")) == {"b": "2-3:2"}
    assert divided(FOUR, tenant("a", "0-3", keeps=True), tenant("b", "0-3")) == {"b": "0-3:4"}


def test_one_that_is_never_moved_has_its_part_left() -> None:
    stays = dataclasses.replace(tenant("b", "0-3"), stays=True)
    assert divided(FOUR, tenant("a", "0-3"), stays) == {"a": "0-1:2"}
    stays = dataclasses.replace(tenant("b", "0-1"), stays=True)
    assert divided(FOUR, tenant("a", "0-3"), stays) == {"a": "2-3:2"}


def test_one_with_other_cores_leaves_those_that_the_other_has_alone() -> None:
    assert divided(FOUR, tenant("a", "0-3"), tenant("b", "0")) == {"a": "1-3:3", "b": "0:1"}
    assert divided(FOUR, tenant("a", "0-2"), tenant("b", "1-3")) == {"a": "0-1:2", "b": "2-3:2"}


def test_whoever_runs_stays_where_its_memory_is_when_another_comes() -> None:
    """The one on node 1 stays there, though it would be on node 0 if both started now."""
    two_nodes = make_host(nodes_per_package=2)
    running = dataclasses.replace(tenant("b", "0-7"), held=CpuSet.parse("4-7"))
    assert divided(two_nodes, running, tenant("c", "0-7")) == {"b": "4-7:4", "c": "0-3:4"}
    other = dataclasses.replace(tenant("a", "0-7"), held=CpuSet.parse("0-3"))
    parts = divided(two_nodes, running, other, tenant("c", "0-7"))
    assert CpuSet.parse(parts["a"].partition(":")[0]) <= CpuSet.parse("0-3")
    assert CpuSet.parse(parts["b"].partition(":")[0]) <= CpuSet.parse("4-7")


def test_more_services_than_cores_share_them_one_by_one() -> None:
    two = make_host(cores_per_complex=2)
    parts = divided(two, tenant("a", "0-1"), tenant("b", "0-1"), tenant("c", "0-1", weight=200))
    assert parts == {"a": "1:1", "b": "1:1", "c": "0:1"}


def test_ranks_have_equal_parts() -> None:
    eight = make_host(cores_per_complex=8)
    parts = divided(eight, tenant("a", "0-3", "4-7"), tenant("b", "0-7"))
    assert parts == {"a": "0-1:2 4-5:2", "b": "2-3,6-7:4"}
    heavy = tenant("b", "0-3", weight=300)
    assert divided(FOUR, tenant("a", "0-1", "2-3"), heavy) == {"a": "0:1 2:1", "b": "1,3:2"}
    two = make_host(cores_per_complex=2)
    assert divided(two, tenant("a", "0", "1"), tenant("b", "0-1")) == {"a": "0:1 0:1", "b": "1:1"}


def test_ranks_stay_on_the_node_where_their_memory_is() -> None:
    two_nodes = make_host(nodes_per_package=2)
    a, b, c = (tenant(unit, "0-3", "4-7") for unit in "abc")
    assert divided(two_nodes, a, tenant("b", "0-7")) == {"a": "0-1:2 4-5:2", "b": "2-3,6-7:4"}
    assert divided(two_nodes, a, b) == {"a": "0-1:2 4-5:2", "b": "2-3:2 6-7:2"}
    assert divided(two_nodes, a, b, c) == {"a": "0-1:2 4-5:2", "b": "2:1 6:1", "c": "3:1 7:1"}


def test_ranks_have_equal_parts_rather_than_those_on_their_node() -> None:
    """They wait for each other."""
    two_nodes = make_host(nodes_per_package=2)
    a = tenant("a", "0-3", "4-7")
    assert divided(two_nodes, a, tenant("b", "0-3")) == {"a": "4-5:2 6-7:2", "b": "0-3:4"}
    assert divided(two_nodes, a, tenant("b", "0-1", keeps=True)) == {"a": "2-4:3 5-7:3"}
    assert divided(two_nodes, a, tenant("b", "0-3", keeps=True)) == {"a": "4-5:2 6-7:2"}


def test_inference_processes_stay_with_their_weights_as_they_wait_for_nobody() -> None:
    two_nodes = make_host(nodes_per_package=2)
    a = dataclasses.replace(tenant("a", "0-3", "4-7"), equal_ranks=False)
    assert divided(two_nodes, a, tenant("b", "0-3")) == {"a": "3:1 4-7:4", "b": "0-2:3"}


RANKS = (("0-7",), ("0-3", "4-7"), ("0-1", "2-3", "4-5", "6-7"), ("2-5",), ("0-3",), ("0-7", "0-7"), ("0", "7"))


@pytest.mark.parametrize("lists", itertools.product(RANKS, repeat=3))
def test_ranks_beside_ranks_have_equal_parts_and_stay(lists: tuple[tuple[str, ...], ...]) -> None:
    facts = make_host(nodes_per_package=2)
    tenants = [tenant(f"{number}", *ranks) for number, ranks in enumerate(lists)]
    parts = divide(tenants, facts)
    given = {unit: CpuSet.union(rank.cpus for rank in part.ranks) for unit, part in parts.items()}
    for one in tenants:
        sizes = [len(rank.cpus) for rank in parts[one.unit].ranks]
        assert min(sizes) and max(sizes) - min(sizes) <= 1
        assert given[one.unit] <= one.cpus
    again = divide([dataclasses.replace(one, held=given[one.unit]) for one in tenants], facts)
    assert again == parts, "nobody is moved when nothing has changed"


def test_a_number_of_threads_in_the_conf_stays() -> None:
    parts = divided(FOUR, tenant("a", "0-3", fixed_threads=True), tenant("b", "0-3"))
    assert parts == {"a": "0-1:4", "b": "2-3:2"}


def test_loader_workers_keep_their_room() -> None:
    rank = TenantRank(CpuSet.parse("0-3"), threads=3, loader_workers=1, budget=4)
    parts = divide([Tenant("a", (rank,)), tenant("b", "0-3")], FOUR)
    assert [one.threads for one in parts["a"].ranks] == [1]


LISTS = ("0-7", "0-3", "2-5", "6", "1,3,5")


@pytest.mark.parametrize("lists", itertools.product(LISTS, repeat=3))
def test_whoever_runs_beside_whom_each_has_something_of_its_own_plan(lists: tuple[str, ...]) -> None:
    """No core is shared while each can have one of its own."""
    facts = make_host(nodes_per_package=2)
    tenants = [tenant(f"{number}", cpus) for number, cpus in enumerate(lists)]
    parts = divide(tenants, facts)
    given = {unit: CpuSet.union(rank.cpus for rank in part.ranks) for unit, part in parts.items()}
    for one in tenants:
        assert given[one.unit] and given[one.unit] <= one.cpus
    again = divide([dataclasses.replace(one, held=given[one.unit]) for one in tenants], facts)
    assert again == parts, "nobody is moved when nothing has changed"
    if lists.count("6") < 2:
        assert sum(map(len, given.values())) == len(CpuSet.union(given.values()))
