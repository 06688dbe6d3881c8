"""Readers on damaged machines: a message, or facts that hold together; never another error."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import FactsError, PlacementError
from torchpar.facts.topology import HostFacts, Library, facts_json, parse_facts, topology_json
from torchpar.host.cgroup import read_limits, read_own_limits
from torchpar.host.facts import read_facts
from torchpar.host.libraries import read_interpreter_libraries
from torchpar.host.sysfs import Tree
from torchpar.placement.usable import find_usable_cores
from torchpar.plan.plan import make_plan

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
    assert parse_facts(json.loads(json.dumps(facts_json(facts)))) == facts
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


def test_a_file_of_the_kernel_is_read_to_its_end() -> None:
    """A read of a list below /proc gives a page of it; the stack is near the end of a process's mappings."""
    assert "[stack]" in (Tree(Path("/")).text("proc/self/maps") or "")


def test_what_the_control_groups_allow_is_found_behind_any_number_of_mounts(tmp_path: Path) -> None:
    """Each container of a host adds its own to the list, and those of the control groups may be the last."""
    mounts = "".join(f"overlay /var/lib/containers/{n:064} overlay rw,relatime 0 0\n" for n in range(2000))
    write(tmp_path, {"proc/self/mounts": f"{mounts}cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n".encode()})
    write(tmp_path, {"sys/fs/cgroup/cpu.max": b"150000 100000\n", "proc/1/cgroup": b"0::/init.scope\n"})
    assert read_limits(Tree(tmp_path)).cpu_limit == 1.5


def test_an_absolute_link_stays_below_the_root(tmp_path: Path) -> None:
    """A captured machine's links must not lead to this one's files."""
    write(tmp_path, {path: text.encode() for path, text in MACHINE.items()})
    (tmp_path / "elsewhere").write_text("0-1")
    (tmp_path / CPU / "online").unlink()
    (tmp_path / CPU / "online").symlink_to("/elsewhere")
    assert read_facts(tmp_path).online_cpus == CpuSet([0, 1])


ELF = b"\x7fELF\x02\x01" + bytes(12) + b"\x3e\x00"


def test_what_an_interpreter_brings_is_found_by_way_of_all_links(tmp_path: Path) -> None:
    """A virtual environment leads to the interpreter that it was made of; Debian's own brings nothing."""
    conda = "data/conda/envs/x"
    write(
        tmp_path,
        {f"{conda}/{name}": ELF for name in ("bin/python3.12", "lib/libstdc++.so.6.0.33", "lib/libtcmalloc.so.4")}
        | {f"{conda}/lib/libjemalloc.so.2": ELF + b"\0libstdc++.so.6\0", "usr/bin/python3.11": ELF}
        | {"usr/lib/libstdc++.so.6": ELF, "plain/bin/python": ELF, "plain/lib/libjemalloc.so.2": ELF},
    )
    for path, target in {
        "opt": "/data",
        f"{conda}/lib/libstdc++.so.6": "libstdc++.so.6.0.33",
        f"{conda}/bin/python": "python3.12",
        "venv/bin/python3": "/opt/conda/envs/x/../x/bin/python",
        "usr/bin/python3": "python3.11",
        "circle": "circle",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(target)
    paths = ("/venv/bin/python3", "/usr/bin/python3", "/plain/bin/python", "/nowhere/python", "/circle/python", "/x")
    assert read_interpreter_libraries(tmp_path, paths) == {
        "/venv/bin/python3": (
            Library("libstdc++", f"/{conda}/lib/libstdc++.so.6", 62),
            Library("tcmalloc", f"/{conda}/lib/libtcmalloc.so.4", 62, needs_libstdcxx=False),
            Library("jemalloc", f"/{conda}/lib/libjemalloc.so.2", 62),
        )
    }


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
        (
            {
                "proc/self/mounts": "none /dev/cpuset cpuset rw 0 0",
                "proc/self/cgroup": None,
                "proc/self/cpuset": "/batch",
                "dev/cpuset/batch/cpus": "2-3",
                "dev/cpuset/batch/mems": "0",
            },
            "2-3",
            None,
        ),
        (
            {
                "proc/self/mounts": "x /my\\040cg/cpuset cgroup rw,cpuset,noprefix 0 0",
                "proc/self/cgroup": "4:cpuset:/",
                "my cg/cpuset/effective_cpus": "1",
                "my cg/cpuset/cpus": "0-1",
            },
            "1",
            None,
        ),
        ({"proc/self/cgroup": "0::/../other", "sys/fs/other/cpuset.cpus.effective": "3"}, "0-3", None),
        ({"sys/fs/cgroup/cpu.max": "9" * 5000 + " 100000"}, "0-3", None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "250000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/torchpar.slice/cpu.max": "50000 100000",
            },
            "0-3",
            2.5,
        ),
    ],
    ids=["v2", "quota", "slice", "ancestors", "v1", "legacy", "noprefix", "outside", "nonsense", "grandparent"],
)
def test_control_groups_limit_what_the_slice_can_have(
    tmp_path: Path, files: dict[str, str | None], allowed: str, limit: float | None
) -> None:
    """Both versions, any mount point, all ancestors; the slice's own limit where it has one."""
    facts, _ = doubts(tmp_path, files)
    assert (str(facts.allowed_cpus), facts.cpu_limit) == (allowed, limit)


@pytest.mark.parametrize(
    ("files", "memory", "own"),
    [
        ({}, 1000, 0),
        ({"sys/fs/cgroup/memory.max": "512000"}, 500, 500),
        ({"sys/fs/cgroup/memory.max": "2048000"}, 1000, 2000),
        ({"sys/fs/cgroup/torchpar.slice/memory.max": "512000"}, 1000, 0),
        (
            {
                "proc/1/cgroup": "0::/init.scope",
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/memory.max": "409600",
            },
            1000,
            400,
        ),
        (
            {
                "proc/self/mounts": "x /cg/memory cgroup rw,memory 0 0",
                "proc/self/cgroup": "4:memory:/job",
                "cg/memory/job/memory.limit_in_bytes": "204800",
                "cg/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            200,
            200,
        ),
        ({"sys/fs/cgroup/memory.max": "9" * 5000}, 1000, 0),
        ({"sys/fs/cgroup/memory.max": "-1"}, 1000, 0),
    ],
    ids=["none", "container", "more than there is", "the slice's", "of a process", "v1", "endless", "nonsense"],
)
def test_control_groups_limit_the_memory(
    tmp_path: Path, files: dict[str, str | None], memory: int, own: int
) -> None:
    """A container has no more than its limit; the slice's is no part of the host. In KiB."""
    facts, _ = doubts(tmp_path, files)
    assert facts.memory_bytes == memory * 1024
    assert (read_own_limits(Tree(tmp_path)).memory_bytes or 0) == own * 1024


def test_a_job_without_a_unit_is_limited_by_the_groups_of_its_own_process(tmp_path: Path) -> None:
    """A login session, a scheduler's step; torchpar.slice is another group."""
    files: dict[str, str | None] = {
        "proc/1/cgroup": "0::/init.scope",
        "proc/self/cgroup": "0::/step",
        "sys/fs/cgroup/torchpar.slice/cpu.max": "100000 100000",
        "sys/fs/cgroup/step/cpu.max": "250000 100000",
        "sys/fs/cgroup/step/cpuset.cpus.effective": "2-3",
    }
    facts, _ = doubts(tmp_path, files)
    own = read_own_limits(Tree(tmp_path))
    assert (facts.cpu_limit, own.cpu_limit, str(own.cpus)) == (1.0, 2.5, "2-3")


def doubts(root: Path, files: dict[str, str | None]) -> tuple[HostFacts, tuple[str, ...]]:
    """The machine with other files (None: without them), and what makes no sense of it."""
    merged = {**MACHINE, **files}
    write(root, {path: text.encode() for path, text in merged.items() if text is not None})
    facts = read_facts(root)
    return facts, facts.doubts


SIBLINGS = {f"{CPU}/cpu{i}/topology/thread_siblings_list": None for i in range(4)}
NODE1 = {"sys/devices/system/node/node1/meminfo": "Node 1 MemTotal: 1000 kB"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, "0,2 1,3"),
        ({**SIBLINGS, **{f"{CPU}/cpu{i}/topology/core_cpus": "5" if i % 2 == 0 else "a" for i in range(4)}}, "0,2 1,3"),
        ({**SIBLINGS, **{f"{CPU}/cpu{i}/topology/thread_siblings": f"0000000{5 << i % 2:x}" for i in range(4)}},
         "0,2 1,3"),
        ({**SIBLINGS, **{f"{CPU}/cpu{i}/topology/core_id": str(i // 2) for i in range(4)}}, "0-1 2-3"),
        ({f"{CPU}/cpu{i}/topology/core_cpus_list": "\n" for i in range(4)}, "0,2 1,3"),
        ({f"{CPU}/cpu{i}/topology/core_cpus_list": f" {i % 2},\t{i % 2 + 2} \n\0" for i in range(4)}, "0,2 1,3"),
        (SIBLINGS, "0 1 2 3"),
    ],
    ids=["lists", "masks", "old masks", "ids", "empty lists", "white space", "nothing"],
)  # fmt: skip
def test_cores_are_known_by_any_of_the_kernels_names(tmp_path: Path, files: dict[str, str | None], cores: str) -> None:
    """core_cpus since 5.1, thread_siblings before and still; lists, masks, or nothing but ids."""
    facts, doubted = doubts(tmp_path, files)
    assert " ".join(map(str, facts.cores)) == cores and doubted == ()


@pytest.mark.parametrize(
    ("files", "groups"),
    [
        ({f"{CPU}/cpu{i}/cache/index3/shared_cpu_list": "0-3" for i in range(4)}
         | {f"{CPU}/cpu{i}/cache/index3/shared_cpu_map": None for i in range(4)}, "0-3"),
        ({f"{CPU}/cpu{i}/cache/index3/shared_cpu_map": "3" if i < 2 else "c" for i in range(4)}, "0-1 2-3"),
        ({f"{CPU}/cpu{i}/cache/index3/level": "2" for i in range(4)}, ""),
        ({f"{CPU}/cpu{i}/cache/index3/level": None for i in range(4)}, None),
    ],
    ids=["list only", "map only", "no level 3", "nothing"],
)  # fmt: skip
def test_level_3_groups_are_read_from_lists_or_maps(
    tmp_path: Path, files: dict[str, str | None], groups: str | None
) -> None:
    """Either file may be missing; no level-3 cache is another thing than no cache known."""
    found = doubts(tmp_path, files)[0].l3_groups
    assert (None if found is None else " ".join(map(str, found))) == groups


@pytest.mark.parametrize(
    ("files", "doubt"),
    [
        ({f"{CPU}/cpu2/topology/thread_siblings_list": "2"},
         f"/{CPU}/cpu0/topology: CPUs 2 are no siblings of CPU 0 by their own files; apart from it"),
        ({f"{CPU}/cpu2/topology/physical_package_id": "1"},
         "CPUs 0,2 are one core by their sibling lists, and in packages 0-1; taken to be in 0"),
        ({**NODE1, "sys/devices/system/node/node1/cpulist": "2-3", "sys/devices/system/node/node0/distance": None},
         "/sys/devices/system/node/node1: CPUs 2-3 are in another NUMA node too; taken to be in that"),
        ({"sys/devices/system/node/node0/cpulist": "0-2"},
         "/sys/devices/system/node: CPUs 3 are in no NUMA node; no memory is taken to be near them"),
        ({"sys/devices/system/node/node0/cpulist": ""},
         "/sys/devices/system/node: no NUMA node has any online CPU; taken as a host without nodes"),
        ({**NODE1, "sys/devices/system/node/node0/cpulist": "0,2", "sys/devices/system/node/node1/cpulist": "1,3"},
         "/sys/devices/system/node/node0/distance: not a number for each of the nodes; distances are not used"),
        ({f"{CPU}/cpu0/cache/index3/shared_cpu_map": "3"},
         f"/{CPU}: a CPU is in several groups that share a level-3 cache; which share one is not used"),
        ({f"{CPU}/cpu0/topology/die_cpus_list": "0-1", f"{CPU}/cpu1/topology/die_cpus_list": "1-2"},
         f"/{CPU}: a CPU is on several dies; dies are not used"),
        ({f"{CPU}/online": "3-0"},
         f"/{CPU}/online: '3-0' is reversed: the first number must not be above the last; not used"),
        ({f"{CPU}/online": "0-99999"},
         f"/{CPU}/online: '0-99999' is out of range: numbers go from 0 to 8191; not used"),
        ({f"{CPU}/cpu1/topology/physical_package_id": "one"},
         f"/{CPU}/cpu1/topology/physical_package_id: 'one' is not a number; taken as unknown"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_with_what_is_done_instead(
    tmp_path: Path, files: dict[str, str | None], doubt: str
) -> None:
    """The file, what is wrong with it, and the fallback; a plan is made all the same, and warns of it."""
    facts, doubted = doubts(tmp_path, files)
    assert doubted == (doubt,)
    plan = make_plan(parse_config([ConfFile("/c", "[Train a]\nScript=/a.py\n")], facts), facts)
    assert plan.warnings[0] == doubt and plan.services[0].cpus <= facts.online_cpus


def test_unknown_is_no_doubt(tmp_path: Path) -> None:
    """-1 is the kernel's word for it, and an old kernel does not have all files."""
    files: dict[str, str | None] = {f"{CPU}/cpu{i}/topology/physical_package_id": "-1" for i in range(4)}
    files |= {f"{CPU}/cpu{i}/topology/die_id": "-1" for i in range(4)}
    files |= {f"{CPU}/cpu{i}/topology/die_cpus": None for i in range(4)}
    facts, doubted = doubts(tmp_path, {**files, f"{CPU}/online": None, f"{CPU}/cpu3/online": "0"})
    assert (facts.packages, facts.dies, str(facts.online_cpus), str(facts.offline_cpus)) == (None, (), "0-2", "3")
    assert doubted == ()


def test_the_cpus_of_a_node_may_be_links_or_a_mask(tmp_path: Path) -> None:
    """cpulist is younger than both."""
    node = "sys/devices/system/node/node"
    facts, doubted = doubts(
        tmp_path,
        {f"{node}0/cpulist": None, f"{node}0/cpumap": "00000000,00000003", f"{node}1/meminfo": "",
         f"{node}1/cpu2/x": "", f"{node}1/cpu3/x": "", f"{node}0/distance": "10 21", f"{node}1/distance": "21 10"},
    )  # fmt: skip
    assert [str(node.cpus) for node in facts.numa_nodes] == ["0-1", "2-3"]
    assert facts.distances is not None and len(doubted) == 2  # of the cores, which lie across


def test_of_many_doubts_the_first_are_told(tmp_path: Path) -> None:
    """A host with 512 CPUs would fill the screen."""
    _, doubted = doubts(tmp_path, {f"{CPU}/cpu{i}/cache/index{j}/level": "x" for i in range(4) for j in (0, 1, 3)})
    assert len(doubted) == 9 and doubted[-1] == "and 4 more of this kind"


def test_a_size_of_pages_that_linux_has_not_is_no_fact() -> None:
    """The longest argument is counted in them."""
    facts = facts_json(make_host())
    assert parse_facts({**facts, "page_size": 65536}).page_size == 65536
    with pytest.raises(FactsError, match="page_size: is none of Linux"):
        parse_facts({**facts, "page_size": -1})


PMU = {"sys/devices/cpu_atom/cpus": b"2-3", "sys/devices/cpu_core/cpus": b"0-1"}
PER_CPU = {
    "cpu_capacity": (1024, 1000, 512, 512),
    "acpi_cppc/highest_perf": (61, 65, 39, 35),
    "cpufreq/cpuinfo_max_freq": (4_800_000, 4_800_000, 3_600_000, 3_600_000),
}


@pytest.mark.parametrize(
    ("pmu", "files", "expected"),
    [
        (PMU, [], [("2-3", 0.5), ("0-1", 1.0)]),
        (PMU, ["cpufreq/cpuinfo_max_freq"], [("2-3", 0.75), ("0-1", 1.0)]),
        (PMU, ["cpufreq/cpuinfo_max_freq", "acpi_cppc/highest_perf"], [("2-3", 0.5738), ("0-1", 1.0)]),
        ({}, ["cpufreq/cpuinfo_max_freq"], [("2-3", 0.75), ("0-1", 1.0)]),
        ({}, ["cpufreq/cpuinfo_max_freq", "acpi_cppc/highest_perf"], [("2-3", 0.5738), ("0-1", 1.0)]),
        ({}, list(PER_CPU), [("2-3", 0.5), ("1", 0.9766), ("0", 1.0)]),
        ({}, ["acpi_cppc/highest_perf"], []),
    ],
)
def test_the_speed_of_a_kind_of_cpus_is_that_of_its_slowest(
    pmu: dict[str, bytes], files: list[str], expected: list[tuple[str, float]], tmp_path: Path
) -> None:
    """By the best of the files that say it; an efficiency core of which none says it has half the speed."""
    write(tmp_path, {f"{CPU}/online": b"0-3", **pmu})
    for file in files:
        write(tmp_path, {f"{CPU}/cpu{i}/{file}": str(value).encode() for i, value in enumerate(PER_CPU[file])})
    assert [(str(kind.cpus), kind.capacity) for kind in read_facts(tmp_path).cpu_kinds] == expected
