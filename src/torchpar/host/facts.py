"""A host's facts, read below its root: this host's, a captured one's, or an image's."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts
from torchpar.host.cgroup import read_limits
from torchpar.host.in_force import read_in_force, read_without
from torchpar.host.libraries import (
    read_arch,
    read_interpreter_libraries,
    read_interpreters,
    read_libraries,
    read_systemd_version,
)
from torchpar.host.pci import read_pci_devices
from torchpar.host.sysfs import Tree
from torchpar.host.topology import (
    compare_places,
    read_cores,
    read_cpu_kinds,
    read_cpus,
    read_dies,
    read_distances,
    read_isolated,
    read_l3_groups,
    read_memory,
    read_numa_nodes,
    read_packages,
)


def read_manifest() -> dict[str, str]:
    """Reads the facts of the host that a generation keeps, as torchpar-generator compares them.

    The kernel's own text; "-" where it has no such file.
    """
    tree = Tree(Path("/"))
    return {
        "cpus_online": tree.text("sys/devices/system/cpu/online") or "-",
        "nodes_online": tree.text("sys/devices/system/node/online") or "-",
    }


def add_interpreters(
    facts: HostFacts, paths: Collection[str], root: Path = Path("/"), silent: frozenset[str] = frozenset()
) -> HostFacts:
    """Adds the facts of interpreters, of those that do not answer only that."""
    programs = [path for path in paths if path not in silent]
    return dataclasses.replace(
        facts,
        interpreters={**facts.interpreters, **dict.fromkeys(paths), **read_interpreters(root, programs)},
        interpreter_libraries={**facts.interpreter_libraries, **read_interpreter_libraries(root, programs)},
    )


def read_facts(root: Path = Path("/")) -> HostFacts:
    """Reads all facts but those of the conf's interpreters. Raises FactsError when the root shows no machine."""
    tree = Tree(root)
    online, offline = read_cpus(tree)
    packages = read_packages(tree, online)
    memory_bytes = read_memory(tree)
    nodes = read_numa_nodes(tree, online, memory_bytes)
    limits = read_limits(tree)
    # A container has no more than its limit of the host's memory.
    memory_bytes = min(filter(None, (memory_bytes, limits.memory_bytes)), default=memory_bytes)
    allowed = (limits.cpus or online) & online
    node_ids = CpuSet(node.id for node in nodes)
    gpus, nics = read_pci_devices(tree)
    cores = read_cores(tree, online)
    compare_places(tree, cores, packages, nodes)
    facts = HostFacts(
        hostname=tree.word("proc/sys/kernel/hostname") or tree.word("etc/hostname") or "unknown",
        arch=os.uname().machine if root == Path("/") else read_arch(tree),
        online_cpus=online,
        offline_cpus=offline,
        # A cpuset of CPUs that are all gone: the kernel then uses what its parent has.
        allowed_cpus=allowed or online,
        allowed_mems=((limits.mems or node_ids) & node_ids) or node_ids,
        isolated_cpus=read_isolated(tree) & online,
        numa_nodes=nodes,
        cores=cores,
        packages=packages,
        dies=read_dies(tree, online, packages or ()),
        l3_groups=read_l3_groups(tree, online),
        cpu_kinds=read_cpu_kinds(tree, online),
        distances=read_distances(tree, nodes),
        gpus=gpus,
        nics=nics,
        cpu_limit=limits.cpu_limit,
        memory_bytes=memory_bytes,
        systemd_version=read_systemd_version(tree),
        page_size=os.sysconf("SC_PAGE_SIZE") if root == Path("/") else None,
        libraries=read_libraries(tree),
        in_force=read_in_force(tree),
        without=read_without(tree),
    )
    return dataclasses.replace(facts, doubts=tree.doubts())
