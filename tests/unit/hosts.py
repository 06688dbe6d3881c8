"""Makes hosts for tests: HostFacts of regular machines, by their numbers."""

from __future__ import annotations

import dataclasses
import json

from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import CpuKind, HostFacts, Library, NumaNode, Package, PciDevice
from torchpar.plan.export import Export, export_json

JEMALLOC = Library("jemalloc", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", 62)
TCMALLOC = Library("tcmalloc", "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4", 62)


def make_host(
    *,
    packages: int = 1,
    nodes_per_package: int = 1,
    complexes_per_node: int = 1,
    cores_per_complex: int = 4,
    smt: int = 1,
    gpu_nodes: tuple[int | None, ...] = (),
    **changes: object,
) -> HostFacts:
    """A regular host: CPU n and its siblings n + cores, n + 2 × cores, ... as Linux numbers them on x86-64."""
    cores_per_node = complexes_per_node * cores_per_complex
    node_count = packages * nodes_per_package
    core_count = node_count * cores_per_node
    cores = tuple(CpuSet(core + core_count * thread for thread in range(smt)) for core in range(core_count))

    def grouped(size: int) -> tuple[CpuSet, ...]:
        return tuple(CpuSet.union(cores[i : i + size]) for i in range(0, core_count, size))

    online = CpuSet(range(core_count * smt))
    facts = HostFacts(
        hostname="host",
        arch="x86_64",
        online_cpus=online,
        offline_cpus=CpuSet(),
        allowed_cpus=online,
        allowed_mems=CpuSet(range(node_count)),
        isolated_cpus=CpuSet(),
        numa_nodes=tuple(NumaNode(i, cpus, 16 * 2**30) for i, cpus in enumerate(grouped(cores_per_node))),
        cores=cores,
        packages=tuple(Package(i, cpus) for i, cpus in enumerate(grouped(cores_per_node * nodes_per_package))),
        dies=(),
        l3_groups=grouped(cores_per_complex),
        cpu_kinds=(),
        distances=None,
        gpus=tuple(make_gpu(i, node) for i, node in enumerate(gpu_nodes)),
        nics=(),
        cpu_limit=None,
        memory_bytes=16 * 2**30 * node_count,
        systemd_version=257,
        libraries=(JEMALLOC, TCMALLOC),
        interpreters={"/usr/bin/python3": 62},
    )
    return dataclasses.replace(facts, **changes)  # type: ignore[arg-type]


def make_gpu(number: int, node: int | None) -> PciDevice:
    """The NVIDIA board at PCI bus 0x10 + number."""
    return PciDevice(
        pci=f"0000:{0x10 + number:02x}:00.0",
        vendor="0x10de",
        device="0x2330",
        class_code="0x030200",
        numa_node=node,
        numa_node_stated=True,
        local_cpus=None,
        driver="nvidia",
    )


def make_hybrid_host() -> HostFacts:
    """4 performance cores with two threads each (CPUs 0-7) and 4 efficiency cores (CPUs 8-11)."""
    cores = (*(CpuSet([2 * i, 2 * i + 1]) for i in range(4)), *(CpuSet([8 + i]) for i in range(4)))
    online = CpuSet(range(12))
    return dataclasses.replace(
        make_host(),
        cores=cores,
        online_cpus=online,
        allowed_cpus=online,
        numa_nodes=(NumaNode(0, online, 2**34),),
        packages=(Package(0, online),),
        l3_groups=(online,),
        cpu_kinds=(CpuKind(CpuSet(range(8, 12)), 0, 0.5), CpuKind(CpuSet(range(8)), 1, 1.0)),
    )


def exported(facts: HostFacts, **rest: object) -> str:
    """The text of `torchpar facts` on a host, on which nothing is in force unless `rest` says so."""
    return json.dumps(export_json(dataclasses.replace(Export(facts, 1_700_000_000), **rest)))  # type: ignore[arg-type]
