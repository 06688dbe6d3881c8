"""CPUs, cores, packages, caches, kinds of CPUs and NUMA nodes, as the kernel shows them below a root.

Sources: Documentation/ABI/stable/sysfs-devices-system-cpu, ABI/testing/sysfs-devices-system-cpu, ABI/stable/
sysfs-devices-node and admin-guide/cputopology.rst. Core ids are not CPU numbers and repeat between packages, so cores
are made from the sibling masks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import FactsError
from torchpar.facts.topology import CpuKind, Distances, NumaNode, Package
from torchpar.host.sysfs import Tree

_CPU = "sys/devices/system/cpu"
_NODE = "sys/devices/system/node"

# ipexrun's rule: where the speed falls by this share of the fastest, another kind of cores begins.
KIND_GAP = 0.15


def read_cpus(tree: Tree) -> tuple[CpuSet, CpuSet]:
    """Reads the online and the offline CPUs. Raises FactsError when there is no CPU."""
    folders = CpuSet(tree.numbered(_CPU, "cpu"))
    online = tree.cpulist(f"{_CPU}/online")
    if not online:
        # CPU 0 often cannot go offline and then has no file that says so.
        online = CpuSet(cpu for cpu in folders if tree.text(f"{_CPU}/cpu{cpu}/online") != "0")
    if not online:
        raise FactsError(f"{tree.path(_CPU)}: shows no online CPU, so this is no machine's /sys")
    return online, folders - online


def read_isolated(tree: Tree) -> CpuSet:
    """Reads the CPUs of the kernel's isolcpus=."""
    return tree.cpulist(f"{_CPU}/isolated") or CpuSet()


def read_cores(tree: Tree, online: CpuSet) -> tuple[CpuSet, ...]:
    """Reads the online CPUs of each core, ordered by their first CPU."""
    cores: list[CpuSet] = []
    by_id: dict[tuple[int | None, int], list[int]] = {}
    seen: set[int] = set()
    siblings_of = {cpu: _siblings(tree, cpu) for cpu in online}
    for cpu in online:
        topology = f"{_CPU}/cpu{cpu}/topology"
        siblings = siblings_of[cpu]
        if siblings is None:
            core_id = tree.number(f"{topology}/core_id")
            if core_id is not None:
                package = tree.number(f"{topology}/physical_package_id")
                by_id.setdefault((package, core_id), []).append(cpu)
                continue
        if cpu not in seen:
            others = (siblings or CpuSet()) & online - CpuSet([cpu])
            # Siblings are of one core only if each of them says so.
            core = CpuSet([cpu, *(n for n in others if n not in seen and siblings_of[n] == siblings)])
            if len(core) <= len(others):
                tree.doubt(
                    f"/{topology}: CPUs {others - core} are no siblings of CPU {cpu} by their own files; apart from it"
                )
            seen.update(core)
            cores.append(core)
    cores += [CpuSet(cpus) for cpus in by_id.values()]
    return _ordered(cores)


def _siblings(tree: Tree, cpu: int) -> CpuSet | None:
    """Reads the CPUs of a CPU's core. The names without "core" are those of kernels before 5.1, and still there."""
    topology = f"{_CPU}/cpu{cpu}/topology"
    for read, names in (
        (tree.cpulist, ("core_cpus_list", "thread_siblings_list")),
        (tree.cpumask, ("core_cpus", "thread_siblings")),
    ):
        for name in names:
            found = read(f"{topology}/{name}")
            if found:
                return found
    return None


def compare_places(
    tree: Tree, cores: Iterable[CpuSet], packages: Iterable[Package] | None, nodes: Iterable[NumaNode]
) -> None:
    """Doubts cores that lie in several packages or NUMA nodes. Placement takes them to be where their first CPU is."""
    for what, places in (
        ("packages", {package.id: package.cpus for package in packages or ()}),
        ("NUMA nodes", {node.id: node.cpus for node in nodes}),
    ):
        of_cpu = {cpu: number for number, cpus in places.items() for cpu in cpus}
        for core in cores:
            found = CpuSet(of_cpu[cpu] for cpu in core if cpu in of_cpu)
            if len(found) > 1:
                where = of_cpu.get(core.first(), found.first())
                tree.doubt(
                    f"CPUs {core} are one core by their sibling lists, and in {what} {found}; taken to be in {where}"
                )


def read_packages(tree: Tree, online: CpuSet) -> tuple[Package, ...] | None:
    """Reads packages by physical_package_id, ordered by their first CPU; None where any CPU's is unknown."""
    packages: dict[int, list[int]] = {}
    for cpu in online:
        package = tree.number(f"{_CPU}/cpu{cpu}/topology/physical_package_id")
        if package is None:
            return None
        packages.setdefault(package, []).append(cpu)
    return tuple(Package(number, CpuSet(cpus)) for number, cpus in packages.items())


def read_dies(tree: Tree, online: CpuSet, packages: Iterable[Package]) -> tuple[CpuSet, ...]:
    """Reads the CPUs of each die; none where every package is one die, or where they contradict each other."""
    dies = set()
    for cpu in online:
        topology = f"{_CPU}/cpu{cpu}/topology"
        die = tree.cpulist(f"{topology}/die_cpus_list") or tree.cpumask(f"{topology}/die_cpus")
        if die:
            dies.add(die & online | CpuSet([cpu]))
    if sum(map(len, dies)) > len(CpuSet.union(dies)):
        tree.doubt(f"/{_CPU}: a CPU is on several dies; dies are not used")
        return ()
    return () if dies <= {package.cpus for package in packages} else _ordered(dies)


def read_l3_groups(tree: Tree, online: CpuSet) -> tuple[CpuSet, ...] | None:
    """Reads the CPUs that share each level-3 cache; none where there is none, None where no cache is described."""
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
    if sum(map(len, groups)) > len(CpuSet.union(groups)):
        tree.doubt(f"/{_CPU}: a CPU is in several groups that share a level-3 cache; which share one is not used")
        return None
    return _ordered(groups) if described else None


def read_cpu_kinds(tree: Tree, online: CpuSet) -> tuple[CpuKind, ...]:
    """Reads the kinds of CPUs of a hybrid host, slowest first; none where all are alike or nothing tells them apart.

    In this order: Intel's two PMUs, the scheduler's capacities (ABI/testing/sysfs-devices-system-cpu, cpu_capacity),
    and, where neither is there, a gap of 15 % between maximum frequencies.
    """
    by_pmu = [tree.cpulist(f"sys/devices/{pmu}/cpus") for pmu in ("cpu_lowpower", "cpu_atom", "cpu_core")]
    kinds = [cpus & online for cpus in by_pmu if cpus and cpus & online]
    if len(kinds) > 1:
        capacities = _capacities(tree, kinds)
        return tuple(CpuKind(cpus, rank, capacities[rank]) for rank, cpus in enumerate(kinds))
    values = _by_value(tree, online, "cpu_capacity")
    if values:
        fastest = max(values)
        return tuple(
            CpuKind(CpuSet(cpus), rank, _capacity(value, fastest))
            for rank, (value, cpus) in enumerate(sorted(values.items()))
        )
    groups = [CpuSet(cpus) for cpus in _groups_by_frequency(_by_value(tree, online, "cpufreq/cpuinfo_max_freq"))]
    capacities = _capacities(tree, groups)
    return tuple(CpuKind(cpus, rank, capacities[rank]) for rank, cpus in enumerate(groups))


# What tells how fast a CPU is, the best first: the scheduler's own number, the firmware's, the highest frequency.
_SPEEDS = ("cpu_capacity", "acpi_cppc/highest_perf", "cpufreq/cpuinfo_max_freq")

# An Intel efficiency core beside a performance core where no file tells: it starts a 256-bit multiply-add each clock,
# a performance core two, as measured for both kinds of a Core i9-12900K (repository InstLatx64/InstLatx64, files
# GenuineIntel/GenuineIntel0090672_AlderLake_LC_InstLatX64.txt and _BC_: VFMADD231PD ymm, T of 1.00 and 0.50 clocks).
# A low-power one has half the clock too.
_UNKNOWN_CAPACITY = 0.5


def _capacities(tree: Tree, kinds: Sequence[CpuSet]) -> list[float]:
    """Reads the relative speed of each kind of CPU, its slowest counts: 1 is the fastest kind. Slowest kinds first."""
    for file in _SPEEDS:
        values = [[tree.number(f"{_CPU}/cpu{cpu}/{file}") for cpu in cpus] for cpus in kinds]
        slowest = [min((value or 0 for value in kind), default=0) for kind in values]
        if slowest and min(slowest) > 0 and len(set(slowest)) > 1:
            return [_capacity(speed, max(slowest)) for speed in slowest]
    return [_UNKNOWN_CAPACITY ** (len(kinds) - 1 - rank) for rank in range(len(kinds))]


def _capacity(speed: int, fastest: int) -> float:
    """Rounds a part of 1 to few digits; no CPU computes nothing."""
    return max(round(speed / fastest, 4), 0.0001)


def _by_value(tree: Tree, online: CpuSet, file: str) -> dict[int, list[int]]:
    """CPUs by the number in a file of theirs; nothing unless every CPU has one above 0 and they differ."""
    values: dict[int, list[int]] = {}
    for cpu in online:
        value = tree.number(f"{_CPU}/cpu{cpu}/{file}")
        if value is None or value <= 0:
            return {}
        values.setdefault(value, []).append(cpu)
    return values if len(values) > 1 else {}


def _groups_by_frequency(frequencies: dict[int, list[int]]) -> list[list[int]]:
    """Groups the CPUs between two gaps of frequency, the slowest first; no groups where there is no gap."""
    groups: list[list[int]] = []
    last = None
    for frequency in sorted(frequencies):
        if last is None or frequency - last >= KIND_GAP * max(frequencies):
            groups.append([])
        groups[-1] += frequencies[frequency]
        last = frequency
    return groups if len(groups) > 1 else []


def read_numa_nodes(tree: Tree, online: CpuSet, memory_bytes: int | None) -> tuple[NumaNode, ...]:
    """Reads the NUMA nodes; a host without node directory is one node, which is then marked as synthetic."""
    nodes = []
    seen = CpuSet()
    for number in tree.numbered(_NODE, "node"):
        path = f"{_NODE}/node{number}"
        cpus = tree.cpulist(f"{path}/cpulist")
        if cpus is None:
            cpus = tree.cpumask(f"{path}/cpumap")
        if cpus is None:
            cpus = CpuSet(tree.numbered(path, "cpu"))
        if not cpus.isdisjoint(seen):
            tree.doubt(f"/{path}: CPUs {cpus & seen} are in another NUMA node too; taken to be in that")
            cpus = cpus - seen
        seen = seen | cpus
        nodes.append(NumaNode(number, cpus & online, _memory(tree.text(f"{path}/meminfo"))))
    if nodes and not online & seen:
        tree.doubt(f"/{_NODE}: no NUMA node has any online CPU; taken as a host without nodes")
        nodes = []
    elif nodes and not online <= seen:
        tree.doubt(f"/{_NODE}: CPUs {online - seen} are in no NUMA node; no memory is taken to be near them")
    return tuple(nodes) or (NumaNode(0, online, memory_bytes, synthetic=True),)


def read_memory(tree: Tree) -> int | None:
    """Reads the host's memory in bytes."""
    return _memory(tree.text("proc/meminfo"))


def _memory(meminfo: str | None) -> int | None:
    match = re.search(r"\bMemTotal:\s+(\d{1,15}) kB", meminfo or "")
    return int(match[1]) * 1024 if match else None


def read_distances(tree: Tree, nodes: Iterable[NumaNode]) -> Distances | None:
    """Reads the distances between nodes; None for one node, or where the files do not make a square."""
    numbers = tuple(node.id for node in nodes)
    matrix = []
    for number in numbers:
        row = (tree.text(f"{_NODE}/node{number}/distance") or "").split()
        if len(row) != len(numbers) or not all(value.isascii() and value.isdigit() and len(value) < 5 for value in row):
            if row:
                tree.doubt(
                    f"/{_NODE}/node{number}/distance: not a number for each of the nodes; distances are not used"
                )
            return None
        matrix.append(tuple(int(value) for value in row))
    return Distances(numbers, tuple(matrix)) if len(numbers) > 1 else None


def _ordered(sets: Iterable[CpuSet]) -> tuple[CpuSet, ...]:
    return tuple(sorted(sets, key=lambda cpus: cpus.first()))
