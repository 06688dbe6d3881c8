"""What services that need their CPUs not lend to others, on machines of several shapes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest

from tests.unit.hosts import make_host
from torchpar.arbitration.divide import Part, Tenant, TenantRank, divide
from torchpar.arbitration.lending import lend, take_back
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, Loan
from torchpar.facts.topology import HostFacts

FOUR = make_host()
ALL = CpuSet(range(64))


def tenant(unit: str, *ranks: str, keeps: bool = True, **more: object) -> Tenant:
    """A service with a rank on each of these CPU lists, one thread for each CPU."""
    lists = [CpuSet.parse(rank) for rank in ranks]
    made = tuple(TenantRank(cpus, len(cpus)) for cpus in lists)
    one = Tenant(unit, made, keeps=keeps, stays=keeps, allowed=ALL)
    return dataclasses.replace(one, **more)  # type: ignore[arg-type]


def owner(unit: str, *ranks: str, **more: object) -> Tenant:
    return tenant(unit, *ranks, lends=True, **more)  # type: ignore[arg-type]


def borrower(unit: str, *ranks: str, **more: object) -> Tenant:
    return tenant(unit, *ranks, borrows=True, **more)  # type: ignore[arg-type]


def parts_of(facts: HostFacts, running: Sequence[Tenant], stopped: Sequence[Tenant]) -> dict[str, Part]:
    parts = lend(running, stopped, divide(running, facts), facts)
    assert parts == lend(running[::-1], stopped[::-1], divide(running, facts), facts)
    return parts


def lent(facts: HostFacts, running: Sequence[Tenant], *stopped: Tenant) -> dict[str, str]:
    """CPUs and threads of each rank of those with a part, such as "0-1:2 2-3:2", and whose CPUs are among them."""
    return {
        unit: " ".join(
            [f"{rank.cpus}:{rank.threads}" for rank in part.ranks] + [f"{loan.unit}={loan.cpus}" for loan in part.loans]
        )
        for unit, part in parts_of(facts, running, stopped).items()
    }


def test_the_cpus_of_a_stopped_owner_go_to_a_borrower_and_are_its_own_when_it_runs() -> None:
    a, b = borrower("a", "0-1"), owner("b", "2-3")
    assert lent(FOUR, [a], b) == {"a": "0-3:4 b=2-3"}
    assert lent(FOUR, [a, b]) == {"a": "0-1:2", "b": "2-3:2"}
    part = parts_of(FOUR, [a], [b])["a"]
    assert [str(rank.cpus) for rank in part.own] == ["0-1"]


def test_an_idle_owner_lends_and_keeps_what_it_has() -> None:
    a, b = borrower("a", "0-1"), owner("b", "2-3", idle=True)
    assert lent(FOUR, [a, b]) == {"a": "0-3:4 b=2-3", "b": "2-3:2"}
    assert parts_of(FOUR, [a, b], [])["b"].lent_to == ("a",)


def test_nothing_is_lent_without_both_keys() -> None:
    assert lent(FOUR, [tenant("a", "0-1")], owner("b", "2-3")) == {}
    assert lent(FOUR, [borrower("a", "0-1")], tenant("b", "2-3")) == {"a": "0-1:2"}
    assert lent(FOUR, [borrower("a", "0-1"), owner("b", "2-3", idle=False)]) == {"a": "0-1:2", "b": "2-3:2"}


def test_what_another_has_or_may_have_at_any_time_is_not_lent() -> None:
    a, b = borrower("a", "0-1"), owner("b", "2-3")
    assert lent(FOUR, [a, tenant("c", "3")], b) == {"a": "0-2:3 b=2"}
    assert lent(FOUR, [a], b, tenant("c", "3")) == {"a": "0-2:3 b=2"}
    assert lent(FOUR, [a], b, owner("c", "3")) == {"a": "0-3:4 b=2-3"}


def test_an_idle_one_borrows_nothing() -> None:
    assert lent(FOUR, [borrower("a", "0-1", lends=True, idle=True)], owner("b", "2-3")) == {"a": "0-1:2"}


def test_its_control_group_decides_what_it_may_have() -> None:
    assert lent(FOUR, [borrower("a", "0-1", allowed=CpuSet.parse("0-2"))], owner("b", "2-3")) == {"a": "0-2:3 b=2"}


def test_a_core_is_never_divided_nor_an_isolated_one_lent() -> None:
    smt = make_host(cores_per_complex=4, smt=2)
    assert lent(smt, [borrower("a", "0-1,4-5")], owner("b", "2-3,6")) == {"a": "0-2,4-6:6 b=2,6"}
    isolated = make_host(isolated_cpus=CpuSet.parse("3"))
    assert lent(isolated, [borrower("a", "0-1")], owner("b", "2-3")) == {"a": "0-2:3 b=2"}


def test_threads_leave_room_for_loader_workers() -> None:
    rank = TenantRank(CpuSet.parse("0-1"), 1, loader_workers=1, budget=2)
    a = dataclasses.replace(borrower("a", "0-1"), ranks=(rank,))
    assert lent(FOUR, [a], owner("b", "2-3")) == {"a": "0-3:3 b=2-3"}


def test_several_borrowers_divide_by_weight_and_no_two_get_the_same_core() -> None:
    eight = make_host(cores_per_complex=8)
    a, b = borrower("a", "0"), borrower("b", "1", weight=200)
    assert lent(eight, [a, b], owner("c", "2-7")) == {"a": "0,6-7:3 c=6-7", "b": "1-5:5 c=2-5"}
    assert lent(eight, [a, b], owner("c", "2")) == {"a": "0:1", "b": "1-2:2 c=2"}


def test_near_ones_are_enough_where_a_process_across_nodes_would_be_slower() -> None:
    two_nodes = make_host(nodes_per_package=2, cores_per_complex=12)
    a = borrower("a", "0-10")
    assert lent(two_nodes, [a], owner("b", "11"), owner("c", "12")) == {"a": "0-11:12 b=11"}
    assert lent(two_nodes, [a], owner("b", "11"), owner("c", "12-15")) == {"a": "0-15:16 b=11 c=12-15"}


def test_equal_ranks_get_equally_much_on_their_own_nodes() -> None:
    two_nodes = make_host(nodes_per_package=2)
    a = borrower("a", "0-1", "4-5")
    assert lent(two_nodes, [a], owner("b", "2-3,6-7")) == {"a": "0-3:4 4-7:4 b=2-3,6-7"}
    assert lent(two_nodes, [a], owner("b", "2-3,6")) == {"a": "0-2:3 4-6:3 b=2,6"}
    assert lent(two_nodes, [a], owner("b", "2-3")) == {"a": "0-1:2 4-5:2"}
    alone = dataclasses.replace(a, equal_ranks=False)
    assert lent(two_nodes, [alone], owner("b", "2-3")) == {"a": "0-3:4 4-5:2 b=2-3"}


def test_those_who_share_cpus_lend_their_part() -> None:
    """Both are planned on all, and one of them is idle."""
    a, b = borrower("a", "0-3", keeps=False), owner("b", "0-3", keeps=False, idle=True)
    assert lent(FOUR, [a, b]) == {"a": "0-3:4 b=2-3", "b": "2-3:2"}


def given_of(part: Part) -> Given:
    return Given("a", "run", part.ranks, part.own or part.ranks, 0.0, own=part.own, loans=part.loans)


def test_what_an_owner_takes_back_leaves_what_others_have_lent() -> None:
    part = parts_of(FOUR, [borrower("a", "0-1")], [owner("b", "2"), owner("c", "3")])["a"]
    without = take_back(given_of(part), {"b"})
    assert [(str(rank.cpus), rank.threads) for rank in without.ranks] == [("0-1,3", 3)]
    assert without.loans == (Loan("c", CpuSet.parse("3")),)
    alone = take_back(without, {"b", "c"})
    assert (alone.ranks, alone.own, alone.loans) == (part.own, (), ())
    assert take_back(alone, {"b"}) == alone


SHAPES = (("0-1",), ("2-5",), ("4-5", "6-7"), ("0-7",), ("7",))
STATES: tuple[dict[str, bool], ...] = (
    {},
    {"idle": True, "lends": True},
    {"borrows": True},
    {"lends": True, "keeps": False},
    {"borrows": True, "keeps": False},
)


@pytest.mark.parametrize("lists", itertools.combinations(SHAPES, 3))
def test_whatever_runs_and_whatever_does_not_no_cpu_has_two_who_use_it(lists: Sequence[tuple[str, ...]]) -> None:
    """And nobody has less than without lending, nor anything after all owners have taken back theirs."""
    facts = make_host(nodes_per_package=2)
    for states in itertools.product(STATES, repeat=3):
        for running in itertools.product((True, False), repeat=3):
            made = [tenant(unit, *lists[i], **states[i]) for i, unit in enumerate("abc")]  # type: ignore[arg-type]
            here = [one for one, runs in zip(made, running, strict=True) if runs]
            stopped = [one for one, runs in zip(made, running, strict=True) if not runs]
            before = divide(here, facts)
            parts = lend(here, stopped, before, facts)
            for one in here:
                part = parts.get(one.unit)
                if not part or not part.loans:
                    assert not part or not before.get(one.unit) or part.ranks == before[one.unit].ranks
                    continue
                assert one.borrows
                loans = CpuSet.union(loan.cpus for loan in part.loans)
                for rank, own in zip(part.ranks, part.own, strict=True):
                    assert own.cpus <= rank.cpus <= own.cpus | loans and own.threads <= rank.threads
                for other in here:
                    if other is not one and not (other.lends and other.idle):
                        has = parts.get(other.unit)
                        theirs = CpuSet.union(r.cpus for r in has.ranks) if has else other.cpus
                        assert loans.isdisjoint(theirs)
                assert all(one.lends or not one.keeps or loans.isdisjoint(one.cpus) for one in stopped)
                assert take_back(given_of(part), "abc").ranks == part.own
