"""Several NUMA nodes, Debian's own kernels (6.1 and 6.12) and the cpuset controller: an emulated machine.

Containers of podman and jobs of Slurm are looked at in the same boot, which costs a minute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machines.emulated import EmulatedMachine
from tests.machines.roots import Suite

SCENARIOS = ("scenario.py", "numa_scenario.py"), ("limits_scenario.py", "limits_scenario.py")

pytestmark = pytest.mark.numa


def result(printed: str) -> dict[str, Any]:
    """The scenario's one line of JSON."""
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    assert lines, printed
    seen: dict[str, Any] = json.loads(lines[-1])
    return seen


@pytest.fixture(scope="module")
def emulated(suite: Suite, deb: Path, progress: Callable[[str], None]) -> Iterator[EmulatedMachine]:
    """The machine, which is off."""
    files = {f"srv/{name}": Path(__file__).with_name(source).read_text(encoding="utf-8") for name, source in SCENARIOS}
    with EmulatedMachine(suite, deb, files, report=progress) as machine:
        yield machine


@pytest.fixture(scope="module")
def four_nodes(emulated: EmulatedMachine) -> dict[str, Any]:
    """What is seen when it has four nodes."""
    return result(emulated.boot(nodes=4))


def is_on(process: dict[str, Any], cpus: str, node: str) -> bool:
    """Whether a process may compute on these CPUs alone, and the memory of the job is there, 100 MiB.

    A rank's interpreter is some 12 MiB when its script begins: those are where it has been started.
    """
    pages = process["anonymous_pages"]
    here = pages.get(node, 0)
    return process["allowed"] == cpus and here * 4096 > 100 * 2**20 and (sum(pages.values()) - here) * 4096 < 16 * 2**20


def test_ranks_and_a_fixed_job_keep_their_nodes_also_when_a_sibling_starts(
    suite: Suite, four_nodes: dict[str, Any]
) -> None:
    """A job on the first of four nodes, and a rank on each of the others: equal ones, with all their pages there.

    The first borrows the CPUs of the fourth node, whose owner does not run, until another job is there. Kernel 6.1
    forgets a bare CPUAffinity= when a sibling turns the cpuset controller on."""
    seen = four_nodes
    assert seen["kernel"].startswith({"bookworm": "6.1.", "trixie": "6.12."}[suite.value])
    assert (seen["apply"][0], seen["start a"][0], seen["start b"][0]) == (0, 0, 0), seen
    places = {"0-1": "0", "2-3": "1", "4-5": "2", "6-7": "3"}
    for name, cpuset, expected in (
        ("a alone", "0-1,6-7", ["0-1,6-7"]),
        ("a", "0-1,6-7", ["0-1"]),
        ("b", "2-7", ["2-3", "4-5", "6-7"]),
    ):
        processes = seen[name]["processes"]
        assert (seen[name]["cpuset"], len(processes)) == (cpuset, len(expected)), seen[name]
        for process, cpus in zip(processes, expected, strict=True):
            assert is_on(process, cpus, places[cpus.partition(",")[0]]), seen[name]
    # MemoryMax= fits the node, so it is bound to it.
    assert seen["a"]["mems"] == "0"
    verdicts = {service["unit"]: service["verdict"] for service in seen["verify"]["services"]}
    assert verdicts == {"torchpar-train@a.service": "ok", "torchpar-train@b.service": "ok"}, seen["verify"]
    items = {item["what"]: item["verdict"] for item in seen["verify"]["services"][0]["items"]}
    assert items["cpuset"] == items["memory policy"] == "ok", items


def test_a_container_is_the_host_that_is_planned_for(four_nodes: dict[str, Any]) -> None:
    """Its CPUs, memory nodes, quota and memory limit, also for another user. Nothing of it is kept for the system.

    The conf that is there names nodes that a container lacks, and enables a service that could not run there."""
    seen = four_nodes["limits"]
    for name, allowed, mems, quota, memory, cpus in (
        ("cpuset", [2, 3, 4, 5], [1, 2], None, 300 * 2**20, [[2, 3, 4, 5]]),
        ("quota in a cpuset", [4, 5, 6, 7], [2, 3], 2.5, None, [[4, 5], [6, 7]]),
        ("quota", [*range(8)], [*range(4)], 2.0, None, [[2, 3], [4, 5], [6, 7]]),
    ):
        assert seen[name]["status"] == 0, seen[name]
        text, _, last = seen[name]["printed"].rstrip().rpartition("\n")
        facts, job = json.loads(text), json.loads(last)
        assert (facts["allowed_cpus"], facts["allowed_mems"], facts["cpu_limit"]) == (allowed, mems, quota), facts
        assert memory is None or facts["memory_bytes"] == memory, facts
        assert job["cpus"] in cpus and job["threads"] == str(len(job["cpus"])), (job, seen[name]["said"])
        assert "no unit of its own" in seen[name]["said"]
        if quota:
            # All on one node, and so is its memory, but for what the interpreter had before.
            assert job["pages"][str(job["cpus"][0] // 2)] > 5 * 1024, job


def test_an_allocation_of_slurm_with_cgroups_is_the_host_that_is_planned_for(four_nodes: dict[str, Any]) -> None:
    """Tasks are in cpusets of their job, and bound one by one within it, or not; another job has the first CPUs."""
    seen = four_nodes["limits"]
    assert seen["slurm"]["status"] == 0, (seen["slurm"], seen["journal"])
    for name, expected in (
        ("one task", {None: [2, 3]}),
        ("two tasks", {"0": [2, 3], "1": [4, 5]}),
        ("two tasks of one cpuset", {"0": [2, 3], "1": [4, 5]}),
    ):
        assert seen[name]["status"] == 0, (seen[name], seen["journal"])
        jobs = [json.loads(line) for line in seen[name]["printed"].splitlines()]
        assert {job["rank"]: job["cpus"] for job in jobs} == expected, seen[name]
        assert {job["threads"] for job in jobs} == {"2"}, seen[name]


def test_nodes_that_are_gone_are_named(four_nodes: dict[str, Any], emulated: EmulatedMachine) -> None:
    """After a boot with one node the job that fits runs, another says why not."""
    assert four_nodes["apply"][0] == 0
    seen = result(emulated.boot(nodes=1))
    assert seen["a"]["cpuset"] == "0-1" and is_on(seen["a"]["processes"][0], "0-1", "0"), seen
    assert seen["start c"][0] == 1
    assert "CPUs=node:1: NUMA node 1 does not exist on this host" in seen["c"]["journal"], seen["c"]
