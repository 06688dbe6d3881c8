"""Reads the counters of units: those of systemd, and those of their control groups, which anybody may read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torchpar.facts.counters import UnitCounters
from torchpar.host.sysfs import Tree
from torchpar.host.unit_state import read_units
from torchpar.host.usage import parse_cpu_stat

_RESOURCES = ("cpu", "memory", "io")


def read_counters(units: Iterable[str], tree: Tree) -> dict[str, UnitCounters]:
    """Reads the counters of units; nothing where systemd does not answer."""
    shown = read_units(units, ("ActiveState", "NRestarts", "ControlGroup"))
    return {unit: _read_one(properties, tree) for unit, properties in shown.items()}


def _read_one(properties: Mapping[str, str], tree: Tree) -> UnitCounters:
    restarts = properties.get("NRestarts", "")
    state = properties.get("ActiveState", "unknown")
    group = properties.get("ControlGroup", "")
    if not group:
        return UnitCounters(state, int(restarts) if restarts.isdecimal() else 0)
    folder = f"sys/fs/cgroup{group}"
    stat = parse_cpu_stat(tree.text(f"{folder}/cpu.stat") or "")
    return UnitCounters(
        state,
        int(restarts) if restarts.isdecimal() else 0,
        cpu_seconds=stat.cpu_seconds,
        throttled_periods=stat.throttled_periods,
        memory_bytes=tree.number(f"{folder}/memory.current"),
        waited_seconds=dict(_waited(tree, folder)),
    )


def _waited(tree: Tree, folder: str) -> Iterable[tuple[str, float]]:
    for resource in _RESOURCES:
        match = re.search(
            r"^some .*\btotal=([0-9]{1,18})$", tree.text(f"{folder}/{resource}.pressure") or "", re.MULTILINE
        )
        if match:
            yield resource, int(match[1]) / 1e6
