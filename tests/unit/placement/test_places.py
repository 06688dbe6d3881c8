"""The processes of an inference service: one for each place with a memory or a cache of its own."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.hosts import make_host, make_hybrid_host
from tests.unit.placement.test_place import kinds_of
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import Held, HostFacts
from torchpar.plan.plan import ServicePlan, make_plan


def plan_of(host: HostFacts, *lines: str) -> ServicePlan:
    text = "\n".join(("[Host]", "ReserveCores=0", "[Infer a]", "Model=/m.pt", *lines, ""))
    return make_plan(parse_config([ConfFile("/c", text)], host), host).services[0]


@pytest.mark.parametrize(
    ("host", "cpus", "why"),
    [
        (make_host(cores_per_complex=8), ["0-7"], "its 8 cores are not in several places of 4 or more"),
        (make_host(packages=2), ["0-3", "4-7"], "one for each core complex of its share, with 4 cores each"),
        (make_host(packages=2, smt=2), ["0-3,8-11", "4-7,12-15"], "one for each core complex"),
        (make_host(complexes_per_node=2, cores_per_complex=8), ["0-7", "8-15"], "one for each core complex"),
        (make_host(packages=2, complexes_per_node=4, cores_per_complex=2), ["0-7", "8-15"], "one for each NUMA node"),
        (make_host(packages=8, cores_per_complex=1), ["0-7"], "its 8 cores are not in several places of 4 or more"),
    ],
)
def test_there_is_a_process_for_each_place_that_is_worth_it(host: HostFacts, cpus: list[str], why: str) -> None:
    """Each with the CPUs of its place, and a compute thread on each core."""
    plan = plan_of(host)
    assert [str(rank.cpus) for rank in plan.ranks] == cpus
    assert sum(rank.threads for rank in plan.ranks) == plan.cores
    reason = next(reason for reason in plan.reasons if reason.key == "Places")
    assert reason.value == str(len(cpus)) and reason.why.startswith(why)


@pytest.mark.parametrize(
    ("lines", "value", "why"),
    [("", "auto", "on each place its first process measures"), ("Processes=3", "3", "on each place"),
     ("CPUs=shared", "1", "on each place, which others use too")],
)  # fmt: skip
def test_the_number_of_places_is_not_called_that_of_processes(lines: str, value: str, why: str) -> None:
    """One place may have several, which is measured at each start."""
    plan = plan_of(make_host(packages=2, smt=2), lines)
    reason = next(reason for reason in plan.reasons if reason.key == "Processes")
    assert reason.value == value and reason.why.startswith(why)


def test_a_share_of_one_place_has_one_process() -> None:
    """What counts is what the service got, not what the host has."""
    assert [str(rank.cpus) for rank in plan_of(make_host(packages=2), "CPUs=4").ranks] == ["0-3"]


def test_slower_cores_have_processes_of_their_own_that_nobody_waits_for() -> None:
    """Few of them are left out; and places that are too small for a process, where one on all cores is slower."""
    plan = plan_of(make_hybrid_host(), "CPUs=8")
    assert [(str(rank.cpus), rank.threads) for rank in plan.ranks] == [("8-11", 4), ("0-7", 4)]
    assert "one for each kind of cores" in next(reason.why for reason in plan.reasons if reason.key == "Places")
    assert [str(rank.cpus) for rank in plan_of(make_hybrid_host(), "CPUs=6").ranks] == ["0-7"]
    three = dataclasses.replace(make_host(packages=3, cores_per_complex=8), allowed_cpus=CpuSet(range(17)))
    assert [str(rank.cpus) for rank in plan_of(three).ranks] == ["0-7", "8-15"]


@pytest.mark.parametrize(
    ("kinds", "cpus"),
    [
        (((710, 5), (930, 5), (720, 5), (1000, 4), (1024, 1)), ["0-4,10-14", "5-9,15-19"]),
        (((1000, 3), (1024, 3)), ["0-5"]),
        (((500, 8), (1000, 4), (1024, 4)), ["0-7", "8-15"]),
        (((256, 3), (1000, 4), (1024, 4)), ["3-10"]),
    ],
)
def test_kinds_of_cores_that_are_nearly_alike_have_one_process(
    kinds: tuple[tuple[int, int], ...], cpus: list[str]
) -> None:
    """Processes of a few per cent more speed are not worth the copies of the model."""
    host = kinds_of(*kinds)
    assert sorted(str(rank.cpus) for rank in plan_of(host, f"CPUs=0-{len(host.cores) - 1}").ranks) == cpus


def test_a_shared_service_has_one_process_unless_several_are_much_faster() -> None:
    """Others run beside its copies of the model."""
    plan = plan_of(make_host(packages=2, complexes_per_node=2), "CPUs=shared")
    assert [str(rank.cpus) for rank in plan.ranks] == ["0-15"]
    assert "not be much faster" in next(reason.why for reason in plan.reasons if reason.key == "Places")
    assert len(plan_of(kinds_of((600, 8), (1024, 8)), "CPUs=shared").ranks) == 2


def test_inference_services_alone_on_the_host_have_processes_on_its_slower_cores() -> None:
    """Where one trains, those load data."""
    host = kinds_of((512, 8), (1024, 8))
    alone = plan_of(host, "Enabled=yes")
    assert sorted(str(rank.cpus) for rank in alone.ranks) == ["0-7", "8-15"]
    again = plan_of(dataclasses.replace(host, in_force={alone.unit: Held(alone.cpus)}), "Enabled=yes")
    assert again == alone
    beside = plan_of(host, "Enabled=yes", "[Train b]", "Script=/s.py", "Enabled=yes", "CPUs=2")
    assert [str(rank.cpus) for rank in beside.ranks] == ["10-15"]
    assert [str(rank.cpus) for rank in plan_of(kinds_of((512, 3), (1024, 8)), "Enabled=yes").ranks] == ["3-10"]


def test_accelerators_have_a_process_each_on_cores_near_it() -> None:
    """Batches are merged within a process, so two for one accelerator would halve them."""
    plan = plan_of(make_host(packages=2, gpu_nodes=(0, 1)))
    assert [(str(rank.cpus), len(rank.gpus)) for rank in plan.ranks] == [("0-3", 1), ("4-7", 1)]
    assert len(plan_of(make_host(cores_per_complex=1, gpu_nodes=(0, 0))).ranks) == 1


def test_a_training_job_is_not_split_by_itself() -> None:
    """A plain script must never be started twice."""
    host = make_host(packages=2)
    text = "[Train a]\nScript=/a.py\n"
    assert len(make_plan(parse_config([ConfFile("/c", text)], host), host).services[0].ranks) == 1
