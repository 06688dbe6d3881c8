"""Compares what systemd holds of a unit with what was planned for it.

A value that an administrator's own drop-in changes is theirs to change, so it is a note; any other difference means
that systemd did not get what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchpar.conf.values import MemoryPolicy
from torchpar.contract.cpulist import CpuSet
from torchpar.plan.record import ServiceRecord
from torchpar.units.drop_ins import drop_in_path, socket_of

# set_mempolicy(2) modes, which are the values of systemd's NUMAPolicy property; -1 is none.
_MODES = {
    -1: MemoryPolicy.DEFAULT,
    0: MemoryPolicy.DEFAULT,
    1: MemoryPolicy.PREFERRED,
    2: MemoryPolicy.BIND,
    3: MemoryPolicy.INTERLEAVE,
    4: MemoryPolicy.LOCAL,
}


@dataclass(frozen=True)
class ReadBack:
    """The differences that are wrong, and those that an administrator made, as sentences."""

    wrong: tuple[str, ...]
    notes: tuple[str, ...]


def compare_unit(plan: ServiceRecord, properties: Mapping[str, Any]) -> ReadBack:
    """Compares a unit's D-Bus properties with its plan."""
    return _compare(plan.unit, _values(plan, properties), properties)


def compare_socket(plan: ServiceRecord, properties: Mapping[str, Any]) -> ReadBack:
    """Compares the D-Bus properties of an inference service's socket with the plan of the service."""
    loaded = " ".join(address for _, address in properties.get("Listen", ()))
    return _compare(socket_of(plan.unit), [("ListenStream", loaded, " ".join(plan.listen))], properties)


def _compare(unit: str, values: Sequence[tuple[str, str, str]], properties: Mapping[str, Any]) -> ReadBack:
    """Compares (key, loaded, planned) of a unit whose drop-in of ours must be loaded."""
    if properties.get("LoadState") == "masked":
        # systemd reads no drop-in of it.
        return ReadBack((), (f"{unit}: is masked, so nothing starts it; to change that: systemctl unmask {unit}",))
    drop_ins = [str(path) for path in properties.get("DropInPaths", ())]
    ours = [path for path in drop_ins if path.endswith("/" + drop_in_path(unit))]
    if not ours:
        return ReadBack((f"{unit}: systemd has not loaded its drop-in",), ())
    after = drop_ins[drop_ins.index(ours[0]) + 1 :]
    differences = [
        f"{unit}: {key} is {loaded or 'empty'}, planned {planned or 'empty'}"
        for key, loaded, planned in values
        if loaded != planned
    ]
    if after:
        overrides = " and ".join(after)
        return ReadBack((), tuple(f"{difference} (an override: {overrides})" for difference in differences))
    return ReadBack(tuple(differences), ())


def _values(plan: ServiceRecord, properties: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    memory = plan.memory_policy
    planned_sets = {
        "CPUAffinity": plan.cpus,
        "AllowedCPUs": plan.cpuset,
        "AllowedMemoryNodes": memory.allowed_nodes,
        "NUMAMask": memory.nodes,
    }
    held_sets = {key: CpuSet.from_bitmap(properties.get(key, ())) for key in planned_sets}
    values = [(key, str(held_sets[key]), str(planned)) for key, planned in planned_sets.items()]
    values.append(("NUMAPolicy", _MODES[properties.get("NUMAPolicy", -1)].value, memory.policy))
    loaded = dict(assignment.partition("=")[::2] for assignment in properties.get("Environment", ()))
    values += [(f"Environment {name}", loaded.get(name, ""), value) for name, value in plan.environment.items()]
    if plan.user is not None:
        values.append(("User", str(properties.get("User", "")), plan.user))
        paths = plan.read_write_paths
        # Service.ReadWritePaths= adds to them.
        opened = [str(path) for path in properties.get("ReadWritePaths", ())][: len(paths)]
        values.append(("ReadWritePaths", " ".join(opened), " ".join(paths)))
    if plan.command:
        values.append(("ExecStart", " ".join(_argv(properties)), " ".join(plan.command)))
    return values


def _argv(properties: Mapping[str, Any]) -> Sequence[str]:
    """Returns the argument vector of the last ExecStart=: a(sasbttttuii), the second member of each."""
    commands = properties.get("ExecStart") or [("", [])]
    return [str(word) for word in commands[-1][1]]
