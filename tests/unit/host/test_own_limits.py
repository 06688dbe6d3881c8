"""The part of a host that this process may use: what is left to it, and never more."""

from __future__ import annotations

import dataclasses
import os

from tests.unit.hosts import make_host
from torchpar.contract.cpulist import CpuSet
from torchpar.host.cgroup import Limits
from torchpar.host.own_limits import narrow, read_own

HOST = make_host(packages=2, cpu_limit=3.0)


def limits(cpus: str, mems: str = "0-1", quota: float | None = None, memory: int | None = None) -> Limits:
    return Limits(CpuSet.parse(cpus), CpuSet.parse(mems), quota, memory)


def test_a_process_has_what_is_left_to_it_and_to_the_slice() -> None:
    """CPUs, nodes, quota and memory, the less of both; where they have no CPU in common its own is the truth."""
    slice_ = dataclasses.replace(HOST, allowed_cpus=CpuSet.parse("0-3"))
    own = narrow(slice_, limits("2-5", "0", quota=5.0, memory=2**30), slice_counts=True)
    assert (str(own.allowed_cpus), str(own.allowed_mems), own.cpu_limit, own.memory_bytes) == ("2-3", "0", 3.0, 2**30)
    elsewhere = narrow(slice_, limits("6-7", memory=2**50), slice_counts=True)
    assert (str(elsewhere.allowed_cpus), elsewhere.memory_bytes) == ("6-7", HOST.memory_bytes)


def test_in_the_scope_of_somebody_else_the_slice_counts_for_nothing() -> None:
    """A batch scheduler has decided what the process has; torchpar.slice is not where it runs."""
    slice_ = dataclasses.replace(HOST, allowed_cpus=CpuSet.parse("0-3"), allowed_mems=CpuSet([0]))
    own = narrow(slice_, limits("2-5"), slice_counts=False)
    assert (str(own.allowed_cpus), str(own.allowed_mems), own.cpu_limit) == ("2-5", "0-1", None)


def test_what_is_unknown_or_not_there_leaves_the_host_as_it_is() -> None:
    """A CPU or node that the kernel has just taken away, and files that cannot be read."""
    for own in (Limits(None, None, None), limits("64-70", "9")):
        assert narrow(HOST, own, slice_counts=True) == HOST


def test_affinity_and_memory_nodes_are_those_of_this_process() -> None:
    """The mask that taskset would have set."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert read_own().cpus == CpuSet([min(before)])
    finally:
        os.sched_setaffinity(0, before)
    mems = read_own().mems
    assert mems is None or 0 in mems
