"""Readers on damaged machines: a message, or facts that hold together; never another error."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchpar.cores import find_usable_cores
from torchpar.cpuset import CpuSet
from torchpar.errors import FactsError, PlacementError
from torchpar.host.facts import read_facts
from torchpar.topology import topology_json

CPU = "sys/devices/system/cpu"

MACHINE = {
    f"{CPU}/online": "0-3",
    f"{CPU}/present": "0-3",
    f"{CPU}/isolated": "",
    **{f"{CPU}/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}" for i in range(4)},
    **{f"{CPU}/cpu{i}/topology/physical_package_id": "0" for i in range(4)},
    **{f"{CPU}/cpu{i}/topology/die_cpus": "f" for i in range(4)},
    **{f"{CPU}/cpu{i}/cache/index3/level": "3" for i in range(4)},
    **{f"{CPU}/cpu{i}/cache/index3/type": "Unified" for i in range(4)},
    **{f"{CPU}/cpu{i}/cache/index3/shared_cpu_map": "f" for i in range(4)},
    **{f"{CPU}/cpu{i}/cpu_capacity": "1024" for i in range(4)},
    "sys/devices/system/node/node0/cpulist": "0-3",
    "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal: 1000 kB",
    "sys/devices/system/node/node0/distance": "10",
    "sys/fs/cgroup/cpuset.cpus.effective": "0-3",
    "sys/fs/cgroup/cpuset.mems.effective": "0",
    "sys/fs/cgroup/cpu.max": "max 100000",
    "proc/self/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
    "proc/self/cgroup": "0::/",
    "proc/meminfo": "MemTotal: 1000 kB",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030000",
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de",
    "sys/bus/pci/devices/0000:01:00.0/numa_node": "-1",
    "sys/bus/pci/devices/0000:01:00.0/local_cpulist": "0-3",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "GPU UUID: GPU-1234",
    "usr/lib/x86_64-linux-gnu/libjemalloc.so.2": "no library",
    "usr/lib/systemd/libsystemd-shared-257.so": "",
}


def write(root: Path, files: dict[str, bytes]) -> None:
    """Write the files of a machine below a root."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


SPOILT = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"-1", b"3-1", b"0-99999", b"0-999999999999", b"\xff" * 9, b"0,2,4-", b"18446744073709551615"]
    ),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(sorted(MACHINE)), SPOILT, max_size=6), st.sets(st.sampled_from(sorted(MACHINE))))
def test_any_damage_gives_a_message_or_facts_that_hold_together(spoilt: dict[str, bytes], missing: set[str]) -> None:
    """Cores part the online CPUs; everything else stays within them; placement has something or says why not."""
    files = {path: text.encode() for path, text in MACHINE.items() if path not in missing}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), {**files, **spoilt})
        try:
            facts = read_facts(Path(folder))
        except FactsError as error:
            assert f"{folder}/" in str(error)
            return
    assert sorted(cpu for core in facts.cores for cpu in core) == list(facts.online_cpus)
    assert facts.allowed_cpus <= facts.online_cpus and facts.allowed_cpus
    assert facts.isolated_cpus <= facts.online_cpus
    for group in (*(facts.l3_groups or ()), *facts.dies, *(node.cpus for node in facts.numa_nodes)):
        assert group <= facts.online_cpus
    assert facts.cpu_limit is None or facts.cpu_limit > 0
    topology_json(facts)
    try:
        assert find_usable_cores(facts, host_cpus=None, reserve=None).cpus <= facts.allowed_cpus
    except PlacementError as error:
        assert "CPU" in str(error)


def test_a_root_without_cpus_is_no_machine(tmp_path: Path) -> None:
    """The message names the directory."""
    with pytest.raises(FactsError, match=f"{tmp_path}/sys/devices/system/cpu: shows no online CPU"):
        read_facts(tmp_path)


def test_files_that_cannot_be_read_are_unknown(tmp_path: Path) -> None:
    """A directory, a pipe and a link to nowhere in place of files hold nobody up."""
    write(tmp_path, {path: text.encode() for path, text in MACHINE.items()})
    for path, make in {
        f"{CPU}/cpu0/topology/physical_package_id": lambda p: os.mkfifo(p),
        "proc/meminfo": lambda p: p.mkdir(),
        f"{CPU}/cpu1/cache/index3/level": lambda p: p.symlink_to("/nowhere"),
    }.items():
        (tmp_path / path).unlink()
        make(tmp_path / path)
    facts = read_facts(tmp_path)
    assert facts.packages is None and facts.memory_bytes is None and facts.online_cpus == CpuSet(range(4))


def test_an_absolute_link_stays_below_the_root(tmp_path: Path) -> None:
    """A captured machine's links must not lead to this one's files."""
    write(tmp_path, {path: text.encode() for path, text in MACHINE.items()})
    (tmp_path / "elsewhere").write_text("0-1")
    (tmp_path / CPU / "online").unlink()
    (tmp_path / CPU / "online").symlink_to("/elsewhere")
    assert read_facts(tmp_path).online_cpus == CpuSet([0, 1])


@pytest.mark.parametrize(
    ("files", "allowed", "limit"),
    [
        ({"sys/fs/cgroup/cpuset.cpus.effective": "1-2"}, "1-2", None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, "0-3", 1.5),
        ({"proc/1/cgroup": "0::/init.scope", "sys/fs/cgroup/torchpar.slice/cpuset.cpus.effective": "3"}, "3", None),
        (
            {"proc/1/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/x": "", "sys/fs/cgroup/a/cpu.max": "50000 100000"},
            "0-3",
            0.5,
        ),
        (
            {
                "proc/self/mounts": "x /cg/cpuset cgroup rw,cpuset 0 0\nx /cg/cpu cgroup rw,cpu,cpuacct 0 0",
                "proc/self/cgroup": "4:cpuset:/job\n3:cpu,cpuacct:/job",
                "cg/cpuset/job/cpuset.cpus": "0-1",
                "cg/cpu/job/cpu.cfs_quota_us": "300000",
                "cg/cpu/job/cpu.cfs_period_us": "100000",
            },
            "0-1",
            3.0,
        ),
    ],
    ids=["v2", "quota", "slice", "ancestors", "v1"],
)
def test_control_groups_limit_what_the_slice_can_have(
    tmp_path: Path, files: dict[str, str], allowed: str, limit: float | None
) -> None:
    """Both versions, any mount point, all ancestors; the slice's own limit where it has one."""
    write(tmp_path, {path: text.encode() for path, text in {**MACHINE, **files}.items()})
    facts = read_facts(tmp_path)
    assert (str(facts.allowed_cpus), facts.cpu_limit) == (allowed, limit)
