"""Several NUMA nodes, Debian's own kernels (6.1 and 6.12) and the cpuset controller: an emulated machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.machines.emulated import EmulatedMachine
from tests.machines.roots import Suite

SCENARIO = Path(__file__).with_name("numa_scenario.py")


def result(printed: str) -> dict[str, Any]:
    """The scenario's one line of JSON."""
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    assert lines, printed
    seen: dict[str, Any] = json.loads(lines[-1])
    return seen


def is_on(process: dict[str, Any], cpus: str, node: str) -> bool:
    """Whether a process may compute on these CPUs alone, and the memory of the job is there, 100 MiB.

    A rank's interpreter is some 12 MiB when its script begins: those are where it has been started.
    """
    pages = process["anonymous_pages"]
    here = pages.get(node, 0)
    return process["allowed"] == cpus and here * 4096 > 100 * 2**20 and (sum(pages.values()) - here) * 4096 < 16 * 2**20


@pytest.mark.numa
def test_ranks_and_a_fixed_job_keep_their_nodes_also_when_a_sibling_starts_and_nodes_go(
    suite: Suite, deb: Path, progress: Callable[[str], None]
) -> None:
    """A job on the first of four nodes, and a rank on each of the others: equal ones, with all their pages there.

    The first borrows the CPUs of the fourth node, whose owner does not run, until another job is there.

    Kernel 6.1 forgets a bare CPUAffinity= when a sibling turns the cpuset controller on. After a boot with one node the
    job that fits runs, another says why not."""
    files = {"srv/scenario.py": SCENARIO.read_text(encoding="utf-8")}
    with EmulatedMachine(suite, deb, files, report=progress) as machine:
        seen = result(machine.boot(nodes=4))
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

        seen = result(machine.boot(nodes=1))
        assert seen["a"]["cpuset"] == "0-1" and is_on(seen["a"]["processes"][0], "0-1", "0"), seen
        assert seen["start c"][0] == 1
        assert "CPUs=node:1: NUMA node 1 does not exist on this host" in seen["c"]["journal"], seen["c"]
