"""Two NUMA nodes, Debian's own kernels (6.1 and 6.12) and the cpuset controller: an emulated machine."""

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


@pytest.mark.numa
def test_two_services_keep_their_nodes_also_when_a_sibling_starts_and_a_node_goes(
    suite: Suite, deb: Path, progress: Callable[[str], None]
) -> None:
    """CPUs, effective cpusets and pages of both are on their nodes; kernel 6.1 forgets a bare CPUAffinity= when a
    sibling turns the controller on. After a boot with one node less the job that fits runs, the other says why."""
    files = {"srv/scenario.py": SCENARIO.read_text(encoding="utf-8")}
    with EmulatedMachine(suite, deb, files, report=progress) as machine:
        seen = result(machine.boot(nodes=2))
        assert seen["kernel"].startswith({"bookworm": "6.1.", "trixie": "6.12."}[suite.value])
        assert (seen["apply"][0], seen["start a"][0], seen["start b"][0]) == (0, 0, 0), seen
        for name, cpus, node in (("a alone", "0-1", "0"), ("a", "0-1", "0"), ("b", "2-3", "1")):
            assert (seen[name]["allowed"], seen[name]["cpuset"]) == (cpus, cpus), seen[name]
            pages = seen[name]["anonymous_pages"]
            assert pages[node] > 0.9 * sum(pages.values()) and pages[node] * 4096 > 100 * 2**20, pages
        # MemoryMax= fits the node, so it is bound to it.
        assert seen["a"]["mems"] == "0"
        verdicts = {service["unit"]: service["verdict"] for service in seen["verify"]["services"]}
        assert verdicts == {"torchpar-train@a.service": "ok", "torchpar-train@b.service": "ok"}, seen["verify"]
        items = {item["what"]: item["verdict"] for item in seen["verify"]["services"][0]["items"]}
        assert items["cpuset"] == items["memory policy"] == "ok", items

        seen = result(machine.boot(nodes=1))
        assert (seen["a"]["allowed"], seen["a"]["cpuset"]) == ("0-1", "0-1"), seen
        assert seen["start b"][0] == 1
        assert "CPUs=node:1: NUMA node 1 does not exist on this host" in seen["b"]["journal"], seen["b"]
