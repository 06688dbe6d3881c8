"""CPUs, cores, packages, caches, kinds of CPUs and NUMA nodes, as the kernel shows them below a root.

Sources: Documentation/ABI/stable/sysfs-devices-system-cpu, ABI/testing/sysfs-devices-system-cpu, ABI/stable/
sysfs-devices-node and admin-guide/cputopology.rst. Core ids are not CPU numbers and repeat between packages, so cores
are made from the sibling masks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torchpar.cpuset import CpuSet
from torchpar.errors import FactsError
from torchpar.host.sysfs import Tree
from torchpar.topology import CpuKind, Distances, NumaNode, Package

_CPU = "sys/devices/system/cpu"
_NODE = "sys/devices/system/node"

# ipexrun's rule: where the speed falls by this share of the fastest, another kind of cores begins.
KIND_GAP = 0.15


def read_cpus(tree: Tree) -> tuple[CpuSet, CpuSet]:
    """The online and the offline CPUs. Raises FactsError when there is no CPU."""
    folders = CpuSet(tree.numbered(_CPU, "cpu"))
    online = tree.cpulist(f"{_CPU}/online")
    if not online:
        # CPU 0 often cannot go offline and then has no file that says so.
        online = CpuSet(cpu for cpu in folders if tree.text(f"{_CPU}/cpu{cpu}/online") != "0")
    if not online:
        raise FactsError(f"{tree.path(_CPU)}: shows no online CPU, so this is no machine's /sys")
    return online, folders - online


def read_isolated(tree: Tree) -> CpuSet:
    """The CPUs of the kernel's isolcpus=."""
    return tree.cpulist(f"{_CPU}/isolated") or CpuSet()


def read_cores(tree: Tree, online: CpuSet) -> tuple[CpuSet, ...]:
    """The online CPUs of each core, ordered by their first CPU."""
    cores: list[CpuSet] = []
    by_id: dict[tuple[int | None, int], list[int]] = {}
    seen: set[int] = set()
    for cpu in online:
        topology = f"{_CPU}/cpu{cpu}/topology"
        siblings = tree.cpulist(f"{topology}/core_cpus_list", f"{topology}/thread_siblings_list")
        if siblings is None:
            siblings = tree.cpumask(f"{topology}/core_cpus", f"{topology}/thread_siblings")
        if siblings is None:
            core_id = tree.number(f"{topology}/core_id")
            if core_id is not None:
                package = tree.number(f"{topology}/physical_package_id")
                by_id.setdefault((package, core_id), []).append(cpu)
                continue
        if cpu not in seen:
            core = CpuSet(n for n in (siblings or ()) if n in online and n not in seen) | CpuSet([cpu])
            seen.update(core)
            cores.append(core)
    cores += [CpuSet(cpus) for cpus in by_id.values()]
    return _ordered(cores)


def read_packages(tree: Tree, online: CpuSet) -> tuple[Package, ...] | None:
    """Packages by physical_package_id, ordered by their first CPU; None where any CPU's is unknown."""
    packages: dict[int, list[int]] = {}
    for cpu in online:
        package = tree.number(f"{_CPU}/cpu{cpu}/topology/physical_package_id")
        if package is None:
            return None
        packages.setdefault(package, []).append(cpu)
    return tuple(Package(number, CpuSet(cpus)) for number, cpus in packages.items())


def read_dies(tree: Tree, online: CpuSet, packages: Iterable[Package]) -> tuple[CpuSet, ...]:
    """The CPUs of each die; none where every package is one die."""
    dies = set()
    for cpu in online:
        topology = f"{_CPU}/cpu{cpu}/topology"
        die = tree.cpulist(f"{topology}/die_cpus_list") or tree.cpumask(f"{topology}/die_cpus")
        if die:
            dies.add(die & online | CpuSet([cpu]))
    return () if dies <= {package.cpus for package in packages} else _ordered(dies)


def read_l3_groups(tree: Tree, online: CpuSet) -> tuple[CpuSet, ...] | None:
    """The CPUs that share each level-3 cache; none where no cache is of level 3, None where no cache is described."""
    groups: set[CpuSet] = set()
    described = False
    for cpu in online:
        cache = f"{_CPU}/cpu{cpu}/cache"
        # The index of the level-3 cache is nearly always 3; the kernel promises no order.
        for number in sorted(tree.numbered(cache, "index"), key=lambda n: n != 3):
            level = tree.number(f"{cache}/index{number}/level")
            described = described or level is not None
            if level != 3 or tree.text(f"{cache}/index{number}/type") == "Instruction":
                continue
            index = f"{cache}/index{number}"
            shared = tree.cpulist(f"{index}/shared_cpu_list") or tree.cpumask(f"{index}/shared_cpu_map")
            if shared:
                groups.add(shared & online | CpuSet([cpu]))
            break
    return _ordered(groups) if described else None


def read_cpu_kinds(tree: Tree, online: CpuSet) -> tuple[CpuKind, ...]:
    """The kinds of CPUs of a hybrid host, the slowest first; none where all are alike or nothing tells them apart.

    In this order: Intel's two PMUs, the scheduler's capacities (ABI/testing/sysfs-devices-system-cpu, cpu_capacity),
    and, where neither is there, a gap of 15 % between maximum frequencies.
    """
    by_pmu = [tree.cpulist(f"sys/devices/{pmu}/cpus") for pmu in ("cpu_lowpower", "cpu_atom", "cpu_core")]
    kinds = [cpus & online for cpus in by_pmu if cpus and cpus & online]
    if len(kinds) > 1:
        return tuple(CpuKind(cpus, rank, rank == len(kinds) - 1) for rank, cpus in enumerate(kinds))
    capacities = _by_value(tree, online, "cpu_capacity")
    if capacities:
        fastest = max(capacities)
        return tuple(
            CpuKind(CpuSet(cpus), rank, capacity >= (1 - KIND_GAP) * fastest)
            for rank, (capacity, cpus) in enumerate(sorted(capacities.items()))
        )
    return _kinds_by_frequency(_by_value(tree, online, "cpufreq/cpuinfo_max_freq"))


def _by_value(tree: Tree, online: CpuSet, file: str) -> dict[int, list[int]]:
    """CPUs by the number in a file of theirs; nothing unless every CPU has one and they differ."""
    values: dict[int, list[int]] = {}
    for cpu in online:
        value = tree.number(f"{_CPU}/cpu{cpu}/{file}")
        if value is None:
            return {}
        values.setdefault(value, []).append(cpu)
    return values if len(values) > 1 else {}


def _kinds_by_frequency(frequencies: dict[int, list[int]]) -> tuple[CpuKind, ...]:
    groups: list[list[int]] = []
    last = None
    for frequency in sorted(frequencies):
        if last is None or frequency - last >= KIND_GAP * max(frequencies):
            groups.append([])
        groups[-1] += frequencies[frequency]
        last = frequency
    if len(groups) < 2:
        return ()
    return tuple(CpuKind(CpuSet(cpus), rank, rank == len(groups) - 1) for rank, cpus in enumerate(groups))


def read_numa_nodes(tree: Tree, online: CpuSet, memory_bytes: int | None) -> tuple[NumaNode, ...]:
    """The NUMA nodes; a host without node directory is one node, which is then marked as synthetic."""
    nodes = []
    for number in tree.numbered(_NODE, "node"):
        path = f"{_NODE}/node{number}"
        cpus = tree.cpulist(f"{path}/cpulist")
        if cpus is None:
            cpus = tree.cpumask(f"{path}/cpumap")
        if cpus is None:
            cpus = CpuSet(tree.numbered(path, "cpu"))
        nodes.append(NumaNode(number, cpus & online, _memory(tree.text(f"{path}/meminfo"))))
    return tuple(nodes) or (NumaNode(0, online, memory_bytes, synthetic=True),)


def read_memory(tree: Tree) -> int | None:
    """The host's memory in bytes."""
    return _memory(tree.text("proc/meminfo"))


def _memory(meminfo: str | None) -> int | None:
    match = re.search(r"\bMemTotal:\s+(\d{1,15}) kB", meminfo or "")
    return int(match[1]) * 1024 if match else None


def read_distances(tree: Tree, nodes: Iterable[NumaNode]) -> Distances | None:
    """The distances between nodes; None for one node, or where the files do not make a square."""
    numbers = tuple(node.id for node in nodes)
    matrix = []
    for number in numbers:
        row = (tree.text(f"{_NODE}/node{number}/distance") or "").split()
        if len(row) != len(numbers) or not all(value.isascii() and value.isdigit() and len(value) < 5 for value in row):
            return None
        matrix.append(tuple(int(value) for value in row))
    return Distances(numbers, tuple(matrix)) if len(numbers) > 1 else None


def _ordered(sets: Iterable[CpuSet]) -> tuple[CpuSet, ...]:
    return tuple(sorted(sets, key=lambda cpus: cpus.first()))
