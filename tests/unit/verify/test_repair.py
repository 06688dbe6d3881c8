"""Which threads go back to which CPUs."""

from __future__ import annotations

import dataclasses

from tests.unit.records import make_record
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank
from torchpar.contract.reports import RankReport
from torchpar.facts.running import Process, RunningUnit
from torchpar.verify.repair import make_repair

UNIT = "torchpar-train@a.service"
GROUP = "/torchpar.slice/torchpar-train@a.service"


def running(*lists: str) -> RunningUnit:
    """One process with a thread on each of these lists."""
    threads = {number: CpuSet.parse(cpus) for number, cpus in enumerate(lists)}
    return RunningUnit(UNIT, 1, (Process(1, threads, None, None, None, None),), has_numa=True)


ONE = make_record({"unit": UNIT, "cpus": "0-3", "ranks": [{"cpus": "0-3"}]})
TWO = make_record({"unit": UNIT, "cpus": "0-3", "ranks": [{"cpus": "0-1"}, {"local_rank": 1, "cpus": "2-3"}]})


def test_where_all_is_as_planned_there_is_nothing_to_do() -> None:
    assert make_repair(ONE, running("0-3", "0-3"), None, GROUP) is None
    assert make_repair(TWO, running("0-1", "2-3", "0-3"), None, GROUP) is None


def test_threads_that_are_elsewhere_go_back_and_no_others() -> None:
    move = make_repair(ONE, running("0-3", "7", "0", "0-4"), None, GROUP)
    assert move and move.control_group == GROUP
    assert [(rank.known, str(rank.to)) for rank in move.ranks] == [({CpuSet([7]), CpuSet.parse("0-4")}, "0-3")]


def test_a_thread_that_the_job_has_bound_stays() -> None:
    assert make_repair(ONE, running("0-3", "0", "1-2"), None, GROUP) is None


def test_ranks_go_to_their_own() -> None:
    move = make_repair(TWO, running("0-1", "0-7"), None, GROUP)
    assert move and [str(rank.to) for rank in move.ranks] == ["0-1", "2-3"] and str(move.others.to) == "0-3"


def test_one_that_was_moved_goes_to_what_it_was_given() -> None:
    planned = (GivenRank(CpuSet.parse("0-3"), 4),)
    given = Given(UNIT, "run", (GivenRank(CpuSet.parse("2-3"), 2),), planned, 0.0)
    assert make_repair(ONE, running("2-3"), given, GROUP) is None
    move = make_repair(ONE, running("2-3", "5"), given, GROUP)
    assert move and str(move.ranks[0].to) == "2-3"


def test_a_rank_that_has_the_cpus_of_all_goes_back_to_its_own() -> None:
    """As kernel 6.1 leaves it when a CPU comes back; their launcher has the CPUs of all."""
    processes = tuple(Process(pid, {pid: CpuSet.parse("0-3")}, None, None, None, None) for pid in (1, 10, 11))
    ranks = (RankReport(10, 0, "2.13.0", 1, 1, "0-3", "glibc"), RankReport(11, 1, "2.13.0", 1, 1, "0-3", "glibc"))
    seen = RunningUnit(UNIT, 1, processes, has_numa=True, ranks=ranks)
    move = make_repair(TWO, seen, None, GROUP)
    assert move and [(rank.known, str(rank.to)) for rank in move.ranks] == [
        ({CpuSet.parse("0-3")}, "0-1"),
        ({CpuSet.parse("0-3")}, "2-3"),
    ]
    assert move.others.known == set() and str(move.allowed) == "0-3"
    # Nobody can be moved to CPUs that are gone.
    gone = dataclasses.replace(seen, online_cpus=CpuSet.parse("0-1"))
    move = make_repair(TWO, gone, None, GROUP)
    assert move and [len(rank.known) for rank in move.ranks] == [1, 0]
