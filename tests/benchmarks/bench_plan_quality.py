"""How good the plans are: captured and generated machines, each with ordinary confs, by the measure of plan/quality.py.

    python3 -m tests.benchmarks.bench_plan_quality [--worst N]

A table with a row for each conf, and the worst plans. The optimum is known where all ways to share a machine out can be
tried: cores of one NUMA node and one kind are alike, so only their numbers matter.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import random
import statistics
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config
from torchpar.conf.syntax import ConfFile
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.facts.topology import CpuKind, Distances, HostFacts, NumaNode, Package
from torchpar.host.facts import read_facts
from torchpar.placement.quality import ACROSS_NODES, LEAST_CORES, Quality, total
from torchpar.placement.usable import auto_reserve, usable_before_reserve
from torchpar.plan.plan import Plan, ServicePlan, make_plan
from torchpar.plan.quality import service_qualities

CAPTURES = Path(__file__).parents[1] / "cases/topology/captures"
GENERATED = 200

# "a KEY=..." is an enabled training service, "i:a" an inference service, "-a" one that is not enabled.
CONFS = {
    "one job": "a",
    "four cores": "a CPUs=4",
    "eight cores": "a CPUs=8",
    "two ranks": "a Ranks=2",
    "four ranks": "a Ranks=4",
    "a rank for each node": "a Ranks=numa",
    "two jobs": "a\nb",
    "weights 3:1:1": "a Weight=300\nb\nc",
    "ranks and a count": "a Ranks=numa\nb CPUs=2",
    "ranks, a count, inference": "a Ranks=numa\nb CPUs=8\ni:c",
    "two with ranks of nodes": "a Ranks=numa\nb Ranks=numa",
    "job and inference": "a\ni:b",
    "two inference": "i:a\ni:b Weight=200 Listen=127.0.0.1:8001",
    "ranks 2 and 3, shared": "a Ranks=2\nb Ranks=3\nc CPUs=shared",
    "six jobs": "a\nb\nc\nd\ne\nf",
    "counts of all sizes": "a CPUs=1\nb CPUs=2 Ranks=2\nc CPUs=3\nd",
    "five of all kinds": "a Ranks=2\nb Ranks=numa Weight=200\nc CPUs=2\ni:d\ne CPUs=shared",
    "two by hand": "-a Ranks=numa\n-b Ranks=2",
    "a slot and another": "a Slot=s Ranks=2\nb Slot=s\nc Ranks=numa",
}


def conf_of(text: str) -> str:
    """The conf that a short text stands for."""
    lines = []
    for line in text.splitlines():
        name, *keys = line.split()
        if name.startswith("i:"):
            lines += [f"[Infer {name[2:]}]", "Model=/m.pt", "Enabled=yes", *keys]
        elif name.startswith("-"):
            lines += [f"[Train {name[1:]}]", "Script=/s.py", *keys]
        else:
            lines += [f"[Train {name}]", "Script=/s.py", "Enabled=yes", *keys]
    return "\n".join(lines)


def captured() -> Iterator[tuple[str, HostFacts]]:
    """All captured machines."""
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(CAPTURES.glob("*.tar.xz")):
            with tarfile.open(path) as archive:
                archive.extraction_filter = lambda member, path: member
                archive.extractall(folder)
            name = path.name.removesuffix(".tar.xz")
            yield name, read_facts(Path(folder, name))


def generated(count: int = GENERATED) -> Iterator[tuple[str, HostFacts]]:
    """Machines of all shapes; the same ones every time."""
    random_ = random.Random(16)
    for number in range(count):
        name, make = SHAPES[number % len(SHAPES)]
        host = make(random_)
        if random_.random() < 0.15:
            host = dataclasses.replace(host, cpu_limit=random_.choice([1.0, 2.5, 4.0, 7.5]))
            name += f", quota {host.cpu_limit:g}"
        yield f"{number} {name} ({len(host.cores)} cores, {len(host.numa_nodes)} nodes)", host


def _flat(random_: random.Random) -> HostFacts:
    return make_host(cores_per_complex=random_.choice([1, 2, 3, 4, 6, 8, 16, 30, 32, 64]), smt=random_.choice([1, 2]))


def _many_sockets(random_: random.Random) -> HostFacts:
    """QEMU's plain -smp N: each CPU is a package with a cache of its own, on one node."""
    host = make_host(packages=random_.choice([2, 4, 8, 12, 16, 32, 64]), cores_per_complex=1)
    return dataclasses.replace(host, numa_nodes=(NumaNode(0, host.online_cpus, 2**36),), allowed_mems=CpuSet([0]))


def _no_caches(random_: random.Random) -> HostFacts:
    return dataclasses.replace(_nodes(random_), l3_groups=None, packages=None)


def _hybrid(random_: random.Random) -> HostFacts:
    kinds = random_.choice([
        ((0.5, 8), (1.0, 8)), ((0.57, 16), (1.0, 8)), ((0.5, 4), (1.0, 4)), ((0.25, 2), (0.57, 8), (1.0, 6)),
        ((280 / 1024, 3), (855 / 1024, 4), (1.0, 1)), ((280 / 1024, 4), (0.8, 2), (1.0, 2)),
        ((0.7, 10), (0.97, 5), (1.0, 5)), ((0.35, 4), (1.0, 4)), ((0.44, 4), (1.0, 2)), ((0.27, 7), (1.0, 1)),
    ])  # fmt: skip
    host = make_host(cores_per_complex=sum(number for _, number in kinds))
    found, start = [], 0
    for rank, (capacity, number) in enumerate(kinds):
        cpus = CpuSet(range(start, start + number))
        found.append(CpuKind(cpus, rank, capacity))
        start += number
    return dataclasses.replace(host, cpu_kinds=tuple(found))


def _nodes(random_: random.Random) -> HostFacts:
    packages = random_.choice([1, 2, 2, 2, 4, 8])
    return make_host(
        packages=packages,
        nodes_per_package=random_.choice([1, 1, 2, 4]),
        complexes_per_node=random_.choice([1, 1, 2, 4]),
        cores_per_complex=random_.choice([1, 2, 3, 4, 5, 8, 10]),
        smt=random_.choice([1, 2]),
    )


def _many_nodes(random_: random.Random) -> HostFacts:
    return make_host(packages=random_.choice([12, 16, 32, 64]), cores_per_complex=random_.choice([1, 2, 3, 4]))


def _uneven(random_: random.Random) -> HostFacts:
    """Nodes of different sizes, as with cores switched off or a cpuset."""
    host = make_host(packages=random_.choice([2, 3, 4]), cores_per_complex=random_.choice([3, 4, 8, 12]))
    gone = CpuSet.union(random_.sample(host.cores, random_.randint(1, len(host.cores) // 2)))
    return dataclasses.replace(host, allowed_cpus=host.online_cpus - gone)


def _cxl(random_: random.Random) -> HostFacts:
    """Memory-only nodes after those with CPUs."""
    host = _nodes(random_)
    numbers = range(len(host.numa_nodes) * 2)
    more = tuple(NumaNode(number, CpuSet(), 2**37) for number in numbers[len(host.numa_nodes) :])
    matrix = tuple(tuple(10 if a == b else 20 for b in numbers) for a in numbers)
    distances = Distances(tuple(numbers), matrix)
    return dataclasses.replace(
        host, numa_nodes=(*host.numa_nodes, *more), distances=distances, allowed_mems=CpuSet(numbers)
    )


def _snc(random_: random.Random) -> HostFacts:
    """Sub-NUMA clusters: an L3 cache for a package, two or four nodes in each."""
    host = make_host(packages=2, nodes_per_package=random_.choice([2, 4]), cores_per_complex=random_.choice([4, 7, 12]))
    packages: Sequence[Package] = host.packages or ()
    return dataclasses.replace(host, l3_groups=tuple(package.cpus for package in packages))


SHAPES = (
    ("one socket", _flat), ("a socket for each CPU", _many_sockets), ("no cache files", _no_caches),
    ("hybrid", _hybrid), ("nodes", _nodes), ("many nodes", _many_nodes), ("uneven nodes", _uneven),
    ("memory-only nodes", _cxl), ("clusters", _snc), ("hybrid", _hybrid),
)  # fmt: skip


@dataclass
class Row:
    """What one conf comes to on all machines."""

    qualities: list[float] = field(default_factory=list)
    of_optimum: list[float] = field(default_factory=list)
    unequal: int = 0
    across: int = 0
    refused: int = 0
    needless: int = 0


def cores_of(plan: Plan, cpus: CpuSet) -> int:
    """How many cores some CPUs are of."""
    return sum(1 for core in plan.facts.cores if not core.isdisjoint(cpus))


def is_unequal(plan: Plan, service: ServicePlan) -> bool:
    """Whether its ranks differ by more than one core, though the conf names no CPUs."""
    if service.service.settings.cpus.is_explicit() or service.service.train() is None:
        return False
    sizes = [cores_of(plan, rank.cpus) for rank in service.ranks]
    threads = [rank.threads for rank in service.ranks]
    return max(sizes) - min(sizes) > 1 or max(threads) - min(threads) > 1


def is_needless(config: Config, host: HostFacts) -> bool:
    """Whether each service could have a core for each of its ranks, and the enabled ones each their own.

    Ranks that are more than the host's accelerators are refused for these: GPUs=none would train on the CPUs. So are
    ranks that are more than the CPUs= of their own section.
    """
    slots: dict[str, int] = {}
    most, shared = 0, 0
    for service in config.services:
        settings, train = service.settings, service.train()
        ranks = train.ranks if train and isinstance(train.ranks, int) else 1
        if 0 < len(host.discrete_accelerators()) < ranks or 0 < settings.cpus.count < ranks:
            return False
        most = max(most, settings.cpus.count, ranks)
        if settings.enabled and settings.cpus.kind is CpuRequestKind.SHARED:
            shared = 1
        elif settings.enabled:
            key = settings.slot or service.unit
            slots[key] = max(slots.get(key, 0), settings.cpus.count, ranks)
    return max(sum(slots.values()), shared, most) <= len(usable_before_reserve(host, None))


def best_speed(cells: tuple[tuple[int, float, int], ...], ranks: int | str, trains: bool) -> float:
    """The best speed of a service with `cells`: (node, capacity, cores)."""
    best = 0.0
    for floor in {capacity for _, capacity, number in cells if number}:
        on_node: dict[int, int] = {}
        for node, capacity, number in cells:
            if capacity >= floor and number:
                on_node[node] = on_node.get(node, 0) + number
        sizes, all_cores = sorted(on_node.values(), reverse=True), sum(on_node.values())
        if ranks == "numa":
            best = max(best, *((i + 1) * size * floor for i, size in enumerate(sizes)))
        if not trains:
            # A process for each node that is large enough for a copy of the model, or one on all of them.
            across = ACROSS_NODES if len(sizes) > 1 else 1.0
            whole = max(sizes[0], sum(n for n in sizes if n >= LEAST_CORES))
            best = max(best, across * all_cores * floor, whole * floor)
        elif isinstance(ranks, int):
            within = max((s for s in range(1, sizes[0] + 1) if sum(n // s for n in sizes) >= ranks), default=0)
            best = max(best, ranks * within * floor, ACROSS_NODES * ranks * (all_cores // ranks) * floor)
    # Or a process for each kind of cores of each node.
    by_kind = sum(capacity * number for _, capacity, number in cells if number >= LEAST_CORES)
    return best if trains else max(best, by_kind)


def optimum(plan: Plan, config: Config, qualities: dict[str, Quality]) -> float | None:
    """The best quality that any way to share the machine out has; None where there are too many ways."""
    if plan.facts.cpu_limit is not None or len(qualities) > 4:
        return None
    chosen = [service for service in plan.services if service.unit in qualities]
    if not all(service.service.settings.enabled for service in chosen):
        return None
    if any(service.service.settings.slot for service in chosen) or any(
        service.service.settings.cpus.is_explicit() for service in plan.services
    ):
        return None
    cores = usable_before_reserve(plan.facts, config.host.cpus)
    cells: dict[tuple[int, float], int] = {}
    kept = auto_reserve(cores, plan.facts)
    for core in sorted(cores, key=lambda core: core.capacity)[kept:]:
        cells[core.numa_node, core.capacity] = cells.get((core.numa_node, core.capacity), 0) + 1
    ways = 1
    for number in cells.values():
        for i in range(len(chosen)):
            ways = ways * (number + i + 1) // (i + 1)
    if ways > 4000:
        return None
    speed = functools.lru_cache(None)(best_speed)
    per_cell = [
        [ways for ways in itertools.product(range(number + 1), repeat=len(chosen)) if sum(ways) <= number]
        for number in cells.values()
    ]
    best = 0.0
    for way in itertools.product(*per_cell):
        found = []
        for i, service in enumerate(chosen):
            mine = tuple((*cell, given[i]) for cell, given in zip(cells, way, strict=True))
            count, train = service.service.settings.cpus.count, service.service.train()
            if count and sum(given[i] for given in way) != count:
                break
            got = speed(mine, train.ranks if train else 1, train is not None)
            found.append(Quality(got, qualities[service.unit].fair))
        else:
            best = max(best, total(found))
    return best or None


def measure(host: HostFacts, text: str, row: Row) -> float | None:
    """Plan one conf on one machine; returns the quality, None where it is refused."""
    config = parse_config([ConfFile("/c", conf_of(text))], host)
    try:
        plan = make_plan(config, host)
    except PlacementError:
        row.refused += 1
        row.needless += is_needless(config, host)
        return None
    qualities = dict(service_qualities(plan, config))
    row.unequal += any(is_unequal(plan, service) for service in plan.services)
    row.across += any(
        len(service.ranks) > 1 and any(len(rank.numa_nodes) > 1 for rank in service.ranks) for service in plan.services
    )
    quality = total(qualities.values())
    row.qualities.append(quality)
    best = optimum(plan, config, qualities)
    if best is not None:
        row.of_optimum.append(quality / best)
    return quality


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="how many of the worst plans are listed")
    worst = parser.parse_args().worst
    hosts = [*captured(), *generated()]
    rows, listed = {name: Row() for name in CONFS}, []
    for machine, host in hosts:
        for name, text in CONFS.items():
            quality = measure(host, text, rows[name])
            if quality is not None:
                listed.append((quality, name, machine))
    print(f"{len(hosts)} machines × {len(CONFS)} confs")
    print("  conf                        plans  median   worst  unequal  across  refused  needless  of optimum (known)")
    for name, row in rows.items():
        print(_line(name, row))
    everything = Row()
    for row in rows.values():
        for key in dataclasses.fields(Row):
            setattr(everything, key.name, getattr(everything, key.name) + getattr(row, key.name))
    print(_line("all", everything))
    for quality, name, machine in sorted(listed)[:worst]:
        print(f"  {quality:.3f}  {name} on {machine}")


def _line(name: str, row: Row) -> str:
    known = f"{min(row.of_optimum):.3f} ({len(row.of_optimum)})" if row.of_optimum else "-"
    return (
        f"  {name:26s}  {len(row.qualities):5d}  {statistics.median(row.qualities):6.3f}  {min(row.qualities):6.3f}  "
        f"{row.unequal:7d}  {row.across:6d}  {row.refused:7d}  {row.needless:8d}  {known:>18s}"
    )


if __name__ == "__main__":
    main()
