"""Efficiency cores to loader workers on a hybrid host: 4 performance cores (CPUs 0-7), 4 efficiency cores (8-11)."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.hosts import make_host, make_hybrid_host
from tests.unit.placement.test_staying import apply
from torchpar.contract.job import parse_job_environment
from torchpar.facts.topology import HostFacts
from torchpar.plan.plan import Plan, plan_json
from torchpar.units.drop_ins import make_units

HYBRID = make_hybrid_host()


def loaders(plan: Plan) -> dict[str, tuple[str, list[int]]]:
    """The CPUs for loader workers, and how many workers each rank has, by service."""
    return {s.service.name: (str(s.loader_cpus), [rank.loader_workers for rank in s.ranks]) for s in plan.services}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", {"a": ("8-11", [0])}),
        ("a LoaderWorkers=2", {"a": ("8-9", [2])}),
        ("a LoaderWorkers=off", {"a": ("", [0])}),
        ("a LoaderWorkers=9", {"a": ("8-11", [7])}),
        ("a Ranks=2 LoaderWorkers=2", {"a": ("8-11", [2, 2])}),
        ("a\nb", {"a": ("8-9", [0]), "b": ("10-11", [0])}),
        ("a Weight=300\nb", {"a": ("8-10", [0]), "b": ("11", [0])}),
        ("a\nb Enabled=no", {"a": ("8-11", [0]), "b": ("", [0])}),
        ("a LoaderWorkers=0\nb CPUs=1", {"a": ("", [0]), "b": ("8-11", [0])}),
        ("a\nb CPUs=10-11", {"a": ("8", [0]), "b": ("9", [0])}),
        ("a\nb CPUs=shared", {"a": ("", [0]), "b": ("", [0])}),
        ("a Threads=1", {"a": ("8-11", [0])}),
    ],
)
def test_efficiency_cores_that_no_service_computes_on_load_data(text: str, expected: dict[str, object]) -> None:
    """Enabled services share them out by weight, for the workers that the conf or the script asks for."""
    assert loaders(apply(text, HYBRID)[0]) == expected


def test_compute_threads_stay_on_performance_cores_and_take_all_of_them() -> None:
    """Where loader workers have cores of their own, no performance core is kept for them."""
    service = apply("a", HYBRID)[0].services[0]
    assert str(service.cpus) == "0-7" and service.ranks[0].threads == 4
    assert {reason.key: reason.why for reason in service.reasons if "slower" in reason.why} == {
        "AllowedCPUs": "its own, and for loader workers the slower cores 8-11, "
        "on which no enabled service computes",
    }


@pytest.mark.parametrize(("quota", "threads", "workers"), [(6.0, 4, 2), (4.0, 2, 2), (2.5, 1, 1)])
def test_a_cpu_quota_counts_efficiency_cores_too(quota: float, threads: int, workers: int) -> None:
    """Its time is spent wherever a process runs."""
    service = apply("a LoaderWorkers=2", dataclasses.replace(HYBRID, cpu_limit=quota))[0].services[0]
    assert (service.ranks[0].threads, service.ranks[0].loader_workers) == (threads, workers)


def test_the_unit_starts_on_its_own_cpus_and_allows_those_of_its_loader_workers() -> None:
    """A process starts on CPUAffinity=; a loader worker may widen it within AllowedCPUs=."""
    plan = apply("a", HYBRID)[0]
    (text,) = make_units(plan).files.values()
    assert "CPUAffinity=0-7\n" in text and "AllowedCPUs=0-11\n" in text
    job = parse_job_environment(plan.services[0].environment)
    assert job is not None and job.ranks[0].loader_cpus == "8-11"
    service = plan_json(plan)["services"][0]
    assert (service["cpus"], service["loader_cpus"], service["allowed_cpus"]) == ("0-7", "8-11", "0-11")
    assert service["ranks"][0]["loader_cpus"] == "8-11"


def test_they_stay_where_they_are_too() -> None:
    """A new service takes what the other gives up, and no more."""
    _, host = apply("b", HYBRID)
    plan, _ = apply("a CPUs=1\nb", host)
    assert loaders(plan) == {"a": ("10-11", [0]), "b": ("8-9", [0])}


@pytest.mark.parametrize("host", [make_host(), make_host(smt=2)])
def test_a_host_with_one_kind_of_cores_has_none(host: HostFacts) -> None:
    """And its units carry no trace of it."""
    plan, _ = apply("a", host)
    assert loaders(plan) == {"a": ("", [0])}
    assert "loader_cpus" not in plan.services[0].environment["TORCHPAR_JOB"]
