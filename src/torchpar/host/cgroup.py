"""Reads what the control groups leave to torchpar.slice, or to this process: CPUs, memory nodes, CPU quota and memory.

Asked is the place where systemd puts torchpar.slice, not the login session of whoever asks: the group of PID 1, without
the init.scope that it sits in. A capture has no PID 1; then it is the group of the process that captured. A job that
has no unit stays in the group of the process that starts it. All ancestors count. Sources: cgroup-v2.rst,
cgroup-v1/cpusets.rst and scheduler/sched-bwc.rst in the kernel's documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.host.sysfs import Tree

SLICE = "torchpar.slice"


@dataclass(frozen=True)
class Limits:
    """None: not limited, or not known."""

    cpus: CpuSet | None
    mems: CpuSet | None
    cpu_limit: float | None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class _Mount:
    path: str  # below the root
    is_v2: bool
    options: frozenset[str]


def read_limits(tree: Tree) -> Limits:
    """Reads the limits of the control groups that torchpar.slice is in."""
    return _read_limits(tree, tuple(_mounts(tree)), ("1", "self"))


def read_own_limits(tree: Tree) -> Limits:
    """Reads the limits of the control groups that this process is in."""
    return _read_limits(tree, tuple(_mounts(tree)), ("self",))


# The processes of whose groups the first that can be read is asked.
_Asked = tuple[str, ...]


def _read_limits(tree: Tree, mounts: tuple[_Mount, ...], asked: _Asked) -> Limits:
    cpus, mems = _read_cpuset(tree, mounts, asked)
    return Limits(cpus, mems, _read_quota(tree, mounts, asked), _read_memory(tree, mounts, asked))


def _read_cpuset(tree: Tree, mounts: tuple[_Mount, ...], asked: _Asked) -> tuple[CpuSet | None, CpuSet | None]:
    for mount in mounts:
        if not mount.is_v2 and "cpuset" not in mount.options:
            continue
        cpus = mems = None
        for group in _groups(tree, mount, "cpuset", asked):
            # v2, v1, and the legacy cpuset file system (v1 with "noprefix"), whose files have no prefix.
            cpus = cpus or _not_empty(
                tree.cpulist(
                    f"{group}/cpuset.cpus.effective",
                    f"{group}/cpuset.effective_cpus",
                    f"{group}/cpuset.cpus",
                    f"{group}/effective_cpus",
                    f"{group}/cpus",
                )
            )
            mems = mems or _not_empty(
                tree.cpulist(
                    f"{group}/cpuset.mems.effective",
                    f"{group}/cpuset.effective_mems",
                    f"{group}/cpuset.mems",
                    f"{group}/effective_mems",
                    f"{group}/mems",
                )
            )
        if cpus or mems:
            return cpus, mems
    return None, None


def _read_quota(tree: Tree, mounts: tuple[_Mount, ...], asked: _Asked) -> float | None:
    """Reads the least quota / period of the group and its ancestors, in CPUs."""
    limits = []
    for mount in mounts:
        for group in _groups(tree, mount, "cpu", asked):
            if mount.is_v2:
                quota, _, period = (tree.text(f"{group}/cpu.max") or "max").partition(" ")
            elif "cpu" in mount.options:
                quota = tree.text(f"{group}/cpu.cfs_quota_us") or "-1"
                period = tree.text(f"{group}/cpu.cfs_period_us") or ""
            else:
                continue
            numbers = [int(text) for text in (quota, period) if text.isdecimal() and len(text) < 19]
            if len(numbers) == 2 and min(numbers) > 0:
                limits.append(numbers[0] / numbers[1])
    return min(limits, default=None)


def _read_memory(tree: Tree, mounts: tuple[_Mount, ...], asked: _Asked) -> int | None:
    """Reads the least memory limit of the group and its ancestors, in bytes.

    That of torchpar.slice is no part of it: what MemoryMax=50% of a service is half of, systemd takes from the root.
    """
    limits = []
    for mount in mounts:
        if not mount.is_v2 and "memory" not in mount.options:
            continue
        for group in _groups(tree, mount, "memory", asked):
            limit = tree.text(f"{group}/{'memory.max' if mount.is_v2 else 'memory.limit_in_bytes'}") or ""
            if limit.isdecimal() and len(limit) < 19 and not group.endswith(SLICE):
                limits.append(int(limit))
    return min(limits, default=None)


def _groups(tree: Tree, mount: _Mount, controller: str, asked: _Asked) -> Iterator[str]:
    """Yields the directories of torchpar.slice if it is there, of its group and of all ancestors up to the mount.

    Without torchpar.slice where only this process is asked for.
    """
    group = _group_of(tree, mount, controller, asked)
    # "/../x" is a group outside of the cgroup namespace; else the path may be that of another namespace, and the mount
    # shows only what is below it.
    if ".." in group.split("/") or not tree.exists(f"{mount.path}{group}"):
        group = ""
    if "1" in asked and tree.exists(f"{mount.path}{group}/{SLICE}"):
        yield f"{mount.path}{group}/{SLICE}"
    while group:
        yield f"{mount.path}{group}"
        group = group.rpartition("/")[0]
    yield mount.path


def _group_of(tree: Tree, mount: _Mount, controller: str, asked: _Asked) -> str:
    for process in asked:
        text = tree.text(f"proc/{process}/cgroup")
        if text is None:
            continue
        for line in text.splitlines():
            number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
            if (number == "0" and mount.is_v2) or (not mount.is_v2 and controller in controllers.split(",")):
                return path.removesuffix("/init.scope").rstrip("/")
    if controller == "cpuset":
        return (tree.text("proc/self/cpuset") or "").rstrip("/")
    return ""


def _mounts(tree: Tree) -> Iterator[_Mount]:
    for line in (tree.text("proc/self/mounts") or tree.text("proc/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) >= 4 and fields[2] in ("cgroup", "cgroup2", "cpuset"):
            options = set(fields[3].split(","))
            if fields[2] == "cpuset":
                options.add("cpuset")
            path = re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), fields[1])
            yield _Mount(path.strip("/"), fields[2] == "cgroup2", frozenset(options))


def _not_empty(cpus: CpuSet | None) -> CpuSet | None:
    return cpus or None
