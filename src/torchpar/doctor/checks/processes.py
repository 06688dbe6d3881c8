"""Checks the CPUs of running processes against each other and the plan, and their threads against their CPUs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from torchpar.contract.cpulist import CpuSet
from torchpar.doctor.check import check
from torchpar.doctor.conditions import GPUS_IN_FORCE, RUNNING, TRAINING, VISIBLE
from torchpar.doctor.finding import Finding, fail, warn
from torchpar.doctor.host import Host, Service
from torchpar.doctor.words import share
from torchpar.facts.running import Process
from torchpar.facts.topology import HostFacts
from torchpar.verify.compare import planned_sets

# Variables by which an OpenMP runtime binds its threads one by one.
_BINDS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


@check(
    "aff.collapsed",
    passed="no process that computes sits on a single CPU of many",
    where=VISIBLE,
    source="pytorch/pytorch#91989, #101850, #8126: OpenMP binds the main thread at import, and workers inherit that",
)
def collapsed(host: Host) -> Iterator[Finding]:
    """Finds a process with torch whose main thread has one CPU, where the plan has several threads for each rank.

    One CPU may be its part for now, where torchpard divides them, or all that is kept for loader workers.
    """
    for service in host.services:
        if not service.record or not service.running or min(rank.threads for rank in service.record.ranks) < 2:
            continue
        wanted = planned_sets(service.record, service.given)
        masks = ((each, _main_cpus(each)) for each in service.running.processes if each.cpu_seconds)
        single = [each for each, cpus in masks if len(cpus) == 1 and cpus not in wanted]
        if single:
            named = [name for name in _BINDS if name in service.environment]
            cure = (
                f"remove {' and '.join(named)} from {service.section}"
                if named
                else "let the script not bind its threads (KMP_AFFINITY, OMP_PROC_BIND, taskset, psutil cpu_affinity)"
            )
            yield fail(
                f"{len(single)} processes of {service.title} run on one CPU each, and their threads take turns there",
                f"process {single[0].pid}: Cpus_allowed_list {_main_cpus(single[0])}; planned:"
                f" {service.record.ranks[0].threads} threads on CPUs {service.record.ranks[0].cpus}",
                f"{cure}, then: torchpar apply; systemctl restart {service.unit}",
            )


def _main_cpus(process: Process) -> CpuSet:
    return (process.threads or {}).get(process.pid, CpuSet())


@check(
    "aff.outside",
    passed="no process has left the CPUs of its service",
    where=RUNNING,
    source="sched_setaffinity(2); pytorch/pytorch#28389",
)
def outside(host: Host) -> Iterator[Finding]:
    """Finds threads on CPUs that are neither the plan's nor in the cpuset that systemd or torchpard has given."""
    for service in host.services:
        if not service.record or not service.running:
            continue
        given = service.record.cpuset | (service.running.cpuset or CpuSet())
        if service.given:
            given = CpuSet.union([given, service.given.cpus, *service.given.had])
        sets = (cpus for process in service.running.processes for cpus in (process.threads or {}).values())
        strays = Counter(str(cpus) for cpus in sets if not cpus <= given)
        if strays:
            cpus, count = strays.most_common(1)[0]
            yield warn(
                f"{sum(strays.values())} threads of {service.title} may run outside of its CPUs {given}",
                f"{count} of them on CPUs {cpus}",
                f"see: torchpar verify {service.title}; then: systemctl restart {service.unit}",
            )


@check(
    "aff.overlap",
    passed="no two running services compute on the same cores",
    where=RUNNING,
    source="measured: two jobs on the same two cores run at a third of their speed, and more so where threads spin",
)
def overlap(host: Host) -> Iterator[Finding]:
    """Finds two services whose processes may run on the same cores, unless both ask for that by CPUs=shared."""
    used = {each.title: (each, _cores(host.facts, _used(each))) for each in host.services if each.runs}
    for (one, (first, cores)), (other, (second, others)) in itertools.combinations(used.items(), 2):
        both = cores & others
        if both and not all(each.record and each.record.shared for each in (first, second)):
            enable = next((each for each in (first, second) if not (each.record and each.record.enabled)), first)
            yield warn(
                f"{one} and {other} run on the same cores, of which each gets less than half",
                f"both may run on CPUs {both}",
                f"give each its own: Enabled=yes in {enable.section}, or CPUs= in both; or Slot= where they may"
                " take turns; then: torchpar apply, and restart both",
            )


def _used(service: Service) -> CpuSet:
    """Returns the CPUs of the processes with torch, or where they cannot be read those given, or else in force."""
    seen = CpuSet.union(
        cpus
        for process in (service.running.processes if service.running else ())
        if process.cpu_seconds
        for cpus in (process.threads or {}).values()
    )
    return seen or (service.given.cpus if service.given else service.cpus)


def _cores(facts: HostFacts, cpus: CpuSet) -> CpuSet:
    """Returns all CPUs of the cores that these CPUs are on."""
    return CpuSet.union(core for core in facts.cores if not core.isdisjoint(cpus))


@check(
    "thr.oversubscribed",
    passed="threads and loader workers of each rank are no more than its CPUs",
    where=TRAINING,
    source="pytorch/pytorch#64864, #125547: 30 times slower with more threads than CPUs",
)
def oversubscribed(host: Host) -> Iterator[Finding]:
    """Finds a rank with more compute threads and planned loader workers than CPUs."""
    for service in host.services:
        if not service.record or not service.trains:
            continue
        stated = service.environment.get("OMP_NUM_THREADS", "").partition(",")[0]
        for rank in service.record.ranks:
            threads = int(stated) if stated.isdecimal() and 0 < len(stated) < 6 else rank.threads
            # The unit names the most that any of its ranks has, and each takes its own.
            if threads == max(each.threads for each in service.record.ranks):
                threads = rank.threads
            wanted, cpus = threads + rank.loader_workers, len(rank.cpus | rank.loader_cpus)
            if wanted > cpus:
                make = fail if wanted > 2 * cpus else warn
                yield make(
                    f"rank {rank.local_rank} of {service.title} has {wanted} threads and loader workers on {cpus} CPUs",
                    f"threads {threads}, LoaderWorkers={rank.loader_workers}, CPUs {rank.cpus | rank.loader_cpus}",
                    f"lower Threads=, OMP_NUM_THREADS or LoaderWorkers= in {service.section}, then: torchpar apply",
                )
                break


@check(
    "thr.openmp",
    passed="each process has one OpenMP runtime",
    where=VISIBLE,
    source="pytorch/pytorch#136307; two runtimes have two pools of threads, which compute against each other",
)
def openmp(host: Host) -> Iterator[Finding]:
    """Finds processes with GNU's and Intel's or LLVM's OpenMP at once."""
    for service in host.services:
        for pid, names in service.openmp.items():
            if len({_maker(name) for name in names}) > 1:
                yield warn(
                    f"process {pid} of {service.title} has several OpenMP runtimes, each with threads of its own",
                    f"/proc/{pid}/maps: {', '.join(names)}",
                    "install torch, numpy and MKL from one source: all by pip, all by conda, or all of Debian",
                )
                break


def _maker(library: str) -> str:
    return "gomp" if library.startswith("libgomp") else "iomp"


@check(
    "aff.gpu_node",
    passed="each rank computes on the NUMA node of its accelerators",
    where=GPUS_IN_FORCE,
    source="torch.numa.binding's documentation: 1 to 10 %; nvidia-smi topo -m",
)
def gpu_node(host: Host) -> Iterator[Finding]:
    """Finds a rank on another NUMA node than its accelerator's."""
    nodes = {gpu.name: gpu.numa_node for gpu in host.facts.accelerators()}
    for service in host.services:
        for rank in service.record.ranks if service.record else ():
            own = host.facts.node_of(rank.cpus)
            for gpu in rank.gpus:
                node = nodes.get(gpu)
                if node is not None and own and node not in own:
                    yield warn(
                        f"rank {rank.local_rank} of {service.title} computes on node {own}, its GPU is on node {node}",
                        f"GPU {gpu}: numa_node {node}; CPUs {rank.cpus}",
                        f"write CPUs=node:{node} into {service.section}, or take its CPUs= out; then: torchpar apply",
                    )


@check(
    "mem.remote",
    passed="the memory of bound services is on their NUMA nodes",
    where=VISIBLE,
    source="numa(7): numa_maps; what was allocated elsewhere before stays there",
)
def remote(host: Host) -> Iterator[Finding]:
    """Finds running services with a third of their pages on other nodes than those of their policy."""
    for service in host.services:
        nodes = service.record.memory_policy.nodes if service.record else None
        if not nodes or not service.running or service.memory_policy not in ("bind", "preferred"):
            continue
        pages: Counter[int] = Counter()
        for process in service.running.processes:
            pages.update(process.pages or {})
        local = sum(count for node, count in pages.items() if node in nodes)
        # A process that has just started has little more than the libraries that others have loaded.
        if pages.total() > 65536 and local < 0.7 * pages.total():
            yield warn(
                f"{share(pages.total() - local, pages.total())} of the memory of {service.title} is not on {nodes}",
                f"numa_maps of its processes: {dict(sorted(pages.items()))}",
                f"see: torchpar explain {service.title}; a restart places it anew: systemctl restart {service.unit}",
            )
