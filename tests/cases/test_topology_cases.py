"""Captured machines: what torchpar reads of each is what other tools, which share no code with it, say of it.

Compared is every field of the reference; of a device, a NUMA node and a CPU kind those members that are torchpar's own
too (the reference also has what other tools think of them: hwloc_cpus, closest_cpus, info, kernel_cpus).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchpar.facts.topology import topology_json
from torchpar.host.facts import read_facts

CAPTURES = Path(__file__).parent / "topology/captures"
NAMES = sorted(path.stem for path in CAPTURES.glob("*.json"))

FIELDS = {
    "online_cpus", "offline_cpus", "allowed_cpus", "allowed_mems", "numa_nodes", "cores", "packages", "dies",
    "l3_groups", "cpu_kinds", "distances", "gpus", "nics", "cpu_limit",
}  # fmt: skip

# Where the reference does not know, and what the kernel's documentation says instead.
DECIDED: dict[tuple[str, str], tuple[Any, str]] = {
    ("gromacs-12900k-cpumax", "numa_nodes"): (
        [{"id": 0, "cpus": list(range(24)), "mem_bytes": None, "synthetic": True}],
        "a kernel without CONFIG_NUMA has no node directory, and then all CPUs share one memory",
    ),
    ("gromacs-12900k-cpumax", "allowed_mems"): ([0], "that one node; its cgroup has no cpuset files"),
}

OTHER_TOOLS = {"hwloc_cpus", "closest_cpus", "info", "kernel_cpus", "gpu_memory_node"}


def without_other_tools(value: Any) -> Any:
    """The reference without what only other tools report."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [{key: item[key] for key in item if key not in OTHER_TOOLS and item[key] is not None} for item in value]
    return value


def without_own(value: Any, reference: Any) -> Any:
    """What torchpar reads, without the members that the reference does not have, and without unknown ones."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and len(value) == len(reference):
        return [
            {key: item[key] for key in item if key in theirs and item[key] is not None}
            for item, theirs in zip(value, reference, strict=True)
        ]
    return value


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_machine_is_read_as_its_reference_says(name: str, unpack: Callable[[str], Path]) -> None:
    """Each field exactly, or as decided above with the reason."""
    reference = json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))
    read = topology_json(read_facts(unpack(name)))
    for field in sorted(FIELDS):
        expected, _ = DECIDED.get((name, field), (reference.get(field), ""))
        expected = [] if expected is None and field in ("gpus", "nics") else expected
        assert without_own(read[field], expected) == without_other_tools(expected), field


def test_every_capture_is_compared() -> None:
    """None is left out by a change of names."""
    assert len(NAMES) == 17 and set(NAMES) >= {name for name, _ in DECIDED}
