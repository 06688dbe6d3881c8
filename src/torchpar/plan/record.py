"""Reads plan.json back and checks it: what a generation keeps of each service. It alone knows the older forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.typed_json import ShapeError, Text, parse_json, shape
from torchpar.contract.unit_names import is_called, title_of, unit_name
from torchpar.facts.topology import Held

_MOST_SERVICES = 10_000


@dataclass(frozen=True)
class PolicyRecord:
    """The memory policy of a service: systemd's word, its nodes, and the nodes that it may use at all."""

    policy: str
    nodes: CpuSet
    allowed_nodes: CpuSet


@dataclass(frozen=True)
class RankRecord:
    """The record of one rank. `budget` is the most that its compute threads and loader workers may be together."""

    local_rank: int
    cpus: CpuSet
    numa_nodes: CpuSet
    threads: int
    loader_workers: int
    gpus: tuple[str, ...] = ()
    loader_cpus: CpuSet = CpuSet()
    budget: int = 0


@dataclass(frozen=True)
class ServiceRecord:
    """The record of one service. None is what an older torchpar did not write: nothing is known of it."""

    unit: str
    kind: str
    name: str
    enabled: bool
    cpus: CpuSet
    memory_policy: PolicyRecord
    allocator: str
    ranks: tuple[RankRecord, ...]
    environment: Mapping[str, Text]
    command: tuple[Text, ...] = ()
    gpus: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    needed_files: tuple[Text, ...] = ()
    loader_cpus: CpuSet = CpuSet()
    allowed_cpus: CpuSet | None = None
    user: str | None = None
    read_write_paths: tuple[Text, ...] = ()
    shared: bool = False

    @property
    def title(self) -> str:
        """The title by which people call it, such as "train@demo"."""
        return title_of(self.kind, self.name)

    @property
    def cpuset(self) -> CpuSet:
        """All CPUs that its processes may use; an older torchpar allowed those that it computes on."""
        return self.cpus if self.allowed_cpus is None else self.allowed_cpus

    def is_called(self, name: str) -> bool:
        """Says whether a person means it: "demo", "train@demo", or the name of its unit."""
        return is_called(self.kind, self.name, name)


@dataclass(frozen=True)
class _Plan:
    services: tuple[ServiceRecord, ...]


def parse_plan(text: str | bytes) -> tuple[ServiceRecord, ...]:
    """Parses the services of a plan_json() text. Raises ShapeError with the place of what is wrong."""
    plan = shape(parse_json(text), _Plan)
    if len(plan.services) > _MOST_SERVICES:
        raise ShapeError(f"services: are more than {_MOST_SERVICES}")
    for number, service in enumerate(plan.services):
        if service.unit != unit_name(service.kind, service.name) or service.kind not in ("train", "infer"):
            raise ShapeError(f"services[{number}].unit: is not that of its kind and name")
        if not service.ranks or not service.cpus:
            raise ShapeError(f"services[{number}]: has no rank or no CPUs")
    return plan.services


@dataclass(frozen=True)
class _Held(Held):
    unit: str = ""


@dataclass(frozen=True)
class _Places:
    services: tuple[_Held, ...] = ()


def parse_places(text: str | bytes) -> dict[str, Held]:
    """Parses the CPUs and accelerators of each service of a plan_json() text, and nothing else. Raises ShapeError."""
    services = shape(parse_json(text), _Places).services
    return {held.unit: Held(held.cpus, held.gpus, held.loader_cpus) for held in services}
