"""The host as immutable values; nothing here reads.

The field names and meanings of `topology_json` are those that users see in `torchpar topology --json`. CPU numbers
are the kernel's. Unknown is None; a list is empty where the machine is known to have none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchpar.contract.cpulist import MAX_NUMBER, CpuSet
from torchpar.contract.errors import FactsError
from torchpar.contract.typed_json import ShapeError, shape
from torchpar.facts.exec_limits import SMALLEST_PAGE


@dataclass(frozen=True)
class NumaNode:
    """A NUMA node: its online CPUs (none on a memory-only node) and its memory in bytes.

    A synthetic node stands for a whole host whose kernel shows no nodes; no memory policy can name it.
    """

    id: int
    cpus: CpuSet
    mem_bytes: int | None = None
    synthetic: bool = False


@dataclass(frozen=True)
class Package:
    """A physical package (socket): physical_package_id and its online CPUs."""

    id: int
    cpus: CpuSet


@dataclass(frozen=True)
class CpuKind:
    """CPUs of one kind on a host with several; a larger efficiency is a faster kind (hwloc's rank).

    `capacity` is how fast one of its CPUs computes: 1 for the fastest kind.
    """

    cpus: CpuSet
    efficiency: int
    capacity: float


@dataclass(frozen=True)
class Distances:
    """ACPI SLIT distances between NUMA nodes: matrix[i][j] is from nodes[i] to nodes[j]; 10 is local."""

    nodes: tuple[int, ...]
    matrix: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PciDevice:
    """A PCI device by its address, e.g. "0000:17:00.0".

    vendor, device and class are the strings of sysfs ("0x10de"); class_code is its `class` file. numa_node is None
    where the kernel does not know (it then says -1, and numa_node_stated is true) or has no such file. driver is None
    where no driver has it (drivers are then stated), or where the machine shows no drivers at all, as some captures.
    """

    pci: str
    vendor: str | None
    device: str | None
    class_code: str | None
    numa_node: int | None
    numa_node_stated: bool
    local_cpus: CpuSet | None
    driver: str | None
    drm: tuple[str, ...] = ()
    netdevs: tuple[str, ...] = ()
    infiniband: tuple[str, ...] = ()
    uuid: str | None = None  # "GPU-...", where NVIDIA's driver shows it
    mig_instances: tuple[str, ...] = ()  # "GI/CI" of what MIG has made of it
    excluded: bool = False  # from use, by NVIDIA's driver
    driver_stated: bool = False  # whether the machine shows which driver has which device
    integrated: bool = False  # a GPU that is a part of the processor
    mig: str | None = None  # the one of those that this stands for, see accelerators()

    @property
    def name(self) -> str:
        """The plan's name for it: its address, or CUDA's name of a MIG instance ("MIG-GPU-.../1/0")."""
        return self.pci if self.mig is None else f"MIG-{self.uuid}/{self.mig}"


@dataclass(frozen=True)
class Library:
    """A shared library that is installed: its absolute path and the ELF machine number (62 is x86-64).

    `needs_libstdcxx` is true where it is linked to libstdc++, as Debian's allocators are: preloaded, it decides which
    libstdc++ the whole process has.
    """

    name: str  # "jemalloc", "tcmalloc", "libstdc++"
    path: str
    elf_machine: int
    needs_libstdcxx: bool = True


@dataclass(frozen=True)
class Held:
    """The CPUs and accelerators of a service in the generation in force, and the slower cores of its loader workers.

    The accelerators are named as in the plan.
    """

    cpus: CpuSet
    gpus: tuple[str, ...] = ()
    loader_cpus: CpuSet = CpuSet()


@dataclass(frozen=True)
class HostFacts:
    """Everything that placement and rendering need to know of one host."""

    hostname: str
    arch: str | None
    online_cpus: CpuSet
    offline_cpus: CpuSet
    allowed_cpus: CpuSet  # by the cpuset that torchpar.slice can have
    allowed_mems: CpuSet
    isolated_cpus: CpuSet
    numa_nodes: tuple[NumaNode, ...]
    cores: tuple[CpuSet, ...]
    packages: tuple[Package, ...] | None
    dies: tuple[CpuSet, ...]
    l3_groups: tuple[CpuSet, ...] | None
    cpu_kinds: tuple[CpuKind, ...]
    distances: Distances | None
    gpus: tuple[PciDevice, ...]  # every display and accelerator device; see accelerators()
    nics: tuple[PciDevice, ...]
    cpu_limit: float | None  # CPU quota in CPUs, the least of all ancestors' cgroups
    memory_bytes: int | None = None
    systemd_version: int | None = None
    page_size: int | None = None  # of the running kernel, which limits how long an argument may be
    libraries: tuple[Library, ...] = ()
    # ELF machine of each interpreter named in the conf; None where the file is missing or no ELF program.
    interpreters: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    # The libstdc++ of its own that an interpreter brings, as conda's does, and the allocators beside it.
    interpreter_libraries: Mapping[str, tuple[Library, ...]] = dataclasses.field(default_factory=dict)
    # What each unit has in the generation in force: placement moves as few of them as possible.
    in_force: Mapping[str, Held] = dataclasses.field(default_factory=dict)
    # Units that systemd could not start with their CPUs (215) or their memory policy (242) on this host as it is.
    without: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # What the kernel shows that makes no sense or contradicts itself, and what was done instead.
    doubts: tuple[str, ...] = ()

    def afresh(self) -> HostFacts:
        """Returns the same host with nothing in force, so that nothing is kept where it is, and all is tried again."""
        return dataclasses.replace(self, in_force={}, without={})

    def node_of(self, cpus: CpuSet) -> CpuSet:
        """Returns the ids of the NUMA nodes that hold any of these CPUs."""
        return CpuSet(node.id for node in self.numa_nodes if not node.cpus.isdisjoint(cpus))

    def accelerators(self) -> tuple[PciDevice, ...]:
        """Returns the devices PyTorch can compute on: NVIDIA, AMD and Intel, without management and virtual displays.

        GPUs that are a part of the processor are among them, as drivers count them too. A GPU that is in MIG's
        instances is these instead: CUDA cannot use it as a whole. The numa_node of each is one that has CPUs, see
        home_node().
        """
        accelerators = (gpu for gpu in self.gpus if is_accelerator(gpu))
        return tuple(
            part for gpu in accelerators for part in _parts(dataclasses.replace(gpu, numa_node=self.home_node(gpu)))
        )

    def discrete_accelerators(self) -> tuple[PciDevice, ...]:
        """Returns the accelerators that services get without naming them: all but GPUs within the processor.

        Integrated GPUs are there for the display, and few builds of PyTorch can use one; a job on CPUs must not become
        one on a GPU by them.
        """
        return tuple(gpu for gpu in self.accelerators() if not gpu.integrated)

    def home_node(self, device: PciDevice) -> int | None:
        """Returns the NUMA node whose CPUs are nearest to a device; None where the kernel does not know.

        On a host with one node that is this one, whatever the kernel says. Else it is the device's own; where that has
        no CPUs, the nearest one that has; and where the node is unknown, that of its local CPUs if it is only one (they
        are all CPUs where the kernel does not know those either).
        """
        with_cpus = [node.id for node in self.numa_nodes if node.cpus]
        if len(with_cpus) == 1:
            return with_cpus[0]
        if device.numa_node in with_cpus:
            return device.numa_node
        if self.distances and device.numa_node in self.distances.nodes and with_cpus:
            row = self.distances.matrix[self.distances.nodes.index(device.numa_node)]
            distance = dict(zip(self.distances.nodes, row, strict=False))
            return min(with_cpus, key=lambda node: (distance.get(node, 255), node))
        local = self.node_of(device.local_cpus or CpuSet())
        return local.first() if len(local) == 1 else None


# They keep a device for virtual machines, or drive it for displays alone.
_FOREIGN_DRIVERS = {"vfio-pci", "pci-stub", "pciback", "nouveau", "nvidiafb", "radeon", "radeonfb"}


def _parts(gpu: PciDevice) -> tuple[PciDevice, ...]:
    if gpu.mig_instances and gpu.uuid:
        return tuple(dataclasses.replace(gpu, mig=mig, mig_instances=()) for mig in gpu.mig_instances)
    return (gpu,)


def is_accelerator(device: PciDevice) -> bool:
    """Says whether PyTorch could compute on the device (CUDA, ROCm or XPU)."""
    if device.excluded or device.driver in _FOREIGN_DRIVERS or (device.driver is None and device.driver_stated):
        return False
    vendor, class_code = device.vendor, device.class_code or ""
    if vendor == "0x10de":
        return class_code.startswith(("0x0300", "0x0302"))
    if vendor == "0x1002":
        # 0x0380 is AMD's class for Instinct boards; ASPEED and virtio displays have other vendors.
        return class_code.startswith(("0x0300", "0x0302", "0x0380", "0x12"))
    if vendor == "0x8086":
        return class_code.startswith(("0x0380", "0x12")) or (
            class_code.startswith("0x0300") and device.driver in ("i915", "xe")
        )
    return False


def topology_json(facts: HostFacts) -> dict[str, Any]:
    """Returns the topology as JSON data, by the names that `torchpar topology --json` promises.

    numa_node of a device is -1 where the kernel says that it does not know, null where it has no such file.
    """
    fields = facts_json(facts)
    names = (
        "online_cpus", "offline_cpus", "allowed_cpus", "allowed_mems", "numa_nodes", "cores", "packages", "dies",
        "l3_groups", "cpu_kinds", "distances", "gpus", "nics", "cpu_limit",
    )  # fmt: skip
    for device in (*fields["gpus"], *fields["nics"]):
        device["class"] = device.pop("class_code")
        for name in ("mig", "driver_stated", "integrated"):
            del device[name]
        if device.pop("numa_node_stated") and device["numa_node"] is None:
            device["numa_node"] = -1
    for node in fields["numa_nodes"]:
        if not node["synthetic"]:
            del node["synthetic"]
    return {"hostname": facts.hostname, "arch": facts.arch, **{name: fields[name] for name in names}}


def facts_json(value: Any) -> Any:
    """Returns a HostFacts (or a part of it) as JSON data: CPU sets become sorted lists, unknown becomes null."""
    if isinstance(value, CpuSet):
        return list(value)
    if dataclasses.is_dataclass(value):
        return {field.name: facts_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [facts_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: facts_json(item) for key, item in value.items()}
    return value


def parse_facts(data: Any) -> HostFacts:
    """Parses the data of facts_json. Raises FactsError with the field that is missing, ill-typed or impossible."""
    try:
        facts = shape(data, HostFacts)
        _check(facts)
    except ShapeError as error:
        raise FactsError(f"{error}; export the facts again: torchpar facts") from None
    return facts


def _check(facts: HostFacts) -> None:
    """Raises ShapeError unless the parts of the facts are those of one machine."""
    online = facts.online_cpus
    _refuse(len(facts.hostname) > _LONGEST_NAME, "hostname", f"is longer than {_LONGEST_NAME} letters")
    _refuse(not online, "online_cpus", "is empty")
    _refuse(not facts.allowed_cpus, "allowed_cpus", "is empty")
    groups = {
        "cores": facts.cores,
        "numa_nodes": tuple(node.cpus for node in facts.numa_nodes),
        "packages": tuple(package.cpus for package in facts.packages or ()),
        "dies": facts.dies,
        "l3_groups": facts.l3_groups or (),
        "cpu_kinds": tuple(kind.cpus for kind in facts.cpu_kinds),
    }
    for name, parts in groups.items():
        taken: set[int] = set()
        for number, cpus in enumerate(parts):
            _refuse(not cpus <= online, f"{name}[{number}]", "has CPUs that are not online")
            _refuse(not taken.isdisjoint(cpus), f"{name}[{number}]", "has CPUs that another one has too")
            taken.update(cpus)
    _refuse(CpuSet.union(facts.cores) != online, "cores", "are not those of the online CPUs")
    _refuse(not all(facts.cores), "cores", "has one without CPUs")
    _check_numbers(facts)
    names = [gpu.name for gpu in facts.accelerators()]
    _refuse(len(set(names)) != len(names), "gpus", "has an accelerator twice")


# More than any kernel's or DNS's: it stands in tables and messages.
_LONGEST_NAME = 255


def _check_numbers(facts: HostFacts) -> None:
    ids = [node.id for node in facts.numa_nodes]
    _refuse(len(set(ids)) != len(ids), "numa_nodes", "has a node twice")
    _refuse(not all(0 <= number <= MAX_NUMBER for number in ids), "numa_nodes", f"has ids beyond 0 to {MAX_NUMBER}")
    amounts = {
        "cpu_limit": facts.cpu_limit,
        "memory_bytes": facts.memory_bytes,
        **{f"numa_nodes[{number}].mem_bytes": node.mem_bytes for number, node in enumerate(facts.numa_nodes)},
    }
    for name, amount in amounts.items():
        _refuse(amount is not None and amount < 0, name, "is negative")
    for number, kind in enumerate(facts.cpu_kinds):
        _refuse(not 0 < kind.capacity <= 1, f"cpu_kinds[{number}].capacity", "is not above 0 and at most 1")
    _refuse(facts.page_size is not None and facts.page_size < SMALLEST_PAGE, "page_size", "is none of Linux")
    if facts.distances:
        rows, size = facts.distances.matrix, len(facts.distances.nodes)
        _refuse(len(rows) != size or any(len(row) != size for row in rows), "distances.matrix", "is not square")


def _refuse(wrong: bool, where: str, what: str) -> None:
    if wrong:
        raise ShapeError(f"{where}: {what}")
