"""plan.json, read back: what a generation keeps of each service, checked, with what older plans leave out filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.typed_json import ShapeError, Text, parse_json, shape
from torchpar.facts.topology import Held

_MOST_SERVICES = 10_000


@dataclass(frozen=True)
class _Policy:
    policy: str
    nodes: CpuSet
    allowed_nodes: CpuSet


@dataclass(frozen=True)
class _Rank:
    local_rank: int
    cpus: CpuSet
    numa_nodes: CpuSet
    threads: int
    loader_workers: int
    gpus: tuple[str, ...] = ()
    loader_cpus: CpuSet = CpuSet()
    budget: int = 0


@dataclass(frozen=True)
class _Service:
    unit: str
    kind: str
    name: str
    enabled: bool
    cpus: CpuSet
    memory_policy: _Policy
    allocator: str
    ranks: tuple[_Rank, ...]
    environment: Mapping[str, Text]
    command: tuple[Text, ...] = ()
    gpus: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    needed_files: tuple[Text, ...] = ()
    loader_cpus: CpuSet = CpuSet()
    allowed_cpus: CpuSet | None = None
    user: str | None = None
    read_write_paths: tuple[Text, ...] = ()


@dataclass(frozen=True)
class _Plan:
    services: tuple[_Service, ...]


def parse_plan(text: str | bytes) -> tuple[dict[str, Any], ...]:
    """The services of a plan_json() text, as that has them. Raises ShapeError with the place of what is wrong."""
    plan = shape(parse_json(text), _Plan)
    if len(plan.services) > _MOST_SERVICES:
        raise ShapeError(f"services: are more than {_MOST_SERVICES}")
    for number, service in enumerate(plan.services):
        if service.unit != f"torchpar-{service.kind}@{service.name}.service" or service.kind not in ("train", "infer"):
            raise ShapeError(f"services[{number}].unit: is not that of its kind and name")
        if not service.ranks or not service.cpus:
            raise ShapeError(f"services[{number}]: has no rank or no CPUs")
    return tuple(_texts(service) for service in plan.services)


@dataclass(frozen=True)
class _Held(Held):
    unit: str = ""


@dataclass(frozen=True)
class _Places:
    services: tuple[_Held, ...] = ()


def parse_places(text: str | bytes) -> dict[str, Held]:
    """Where the services of a plan_json() text are, whatever else it says of them. Raises ShapeError."""
    services = shape(parse_json(text), _Places).services
    return {held.unit: Held(held.cpus, held.gpus, held.loader_cpus) for held in services}


def _texts(value: Any) -> Any:
    """JSON data again, with sets of CPUs as texts."""
    if isinstance(value, CpuSet):
        return str(value)
    if dataclasses.is_dataclass(value):
        named = {field.name: _texts(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if named.get("allowed_cpus", "") is None:
            named["allowed_cpus"] = named["cpus"]
        return named
    if isinstance(value, tuple):
        return [_texts(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value
