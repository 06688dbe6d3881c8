"""A host as the checks see it: files below its root, its facts, its conf, and its services with what runs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torchpar.conf.services import Config
from torchpar.conf.services import Service as Declared
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given
from torchpar.contract.unit_names import shorten
from torchpar.facts.disk import Disk
from torchpar.facts.running import RunningUnit
from torchpar.facts.topology import HostFacts
from torchpar.host.sysfs import Tree
from torchpar.plan.record import ServiceRecord
from torchpar.verify.service import RUNNING


@dataclass(frozen=True, eq=False)
class Service:
    """One service: as the conf declares it, as the generation in force has it, and as it runs; None where it is not.

    `properties` are those of its unit as `systemctl show` prints them; none where systemd was not asked. `openmp` are
    the OpenMP libraries of each of its processes, `given` what torchpard has given it in this run.
    """

    unit: str
    declared: Declared | None = None
    record: ServiceRecord | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    running: RunningUnit | None = None
    openmp: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    given: Given | None = None

    @property
    def title(self) -> str:
        """The title by which people call it."""
        return shorten(self.unit)

    @property
    def section(self) -> str:
        """Its section in the conf."""
        kind, _, name = self.title.partition("@")
        return f"[{kind.capitalize()} {name}]"

    @property
    def trains(self) -> bool:
        """Says whether it is a training service."""
        return self.unit.startswith("torchpar-train@")

    @property
    def runs(self) -> bool:
        """Says whether its main process runs."""
        return self.properties.get("ActiveState") in RUNNING and self.properties.get("MainPID", "0") != "0"

    @property
    def hosts(self) -> int:
        """The most hosts that it trains on together."""
        train = self.declared.train() if self.declared else None
        return train.nodes[1] if train else 1

    @property
    def memory_policy(self) -> str:
        """The memory policy in force, in systemd's word; "" where none is."""
        return self.record.memory_policy.policy if self.record else ""

    @property
    def cpus(self) -> CpuSet:
        """The CPUs that it has in force for computing and loading data."""
        return self.record.cpus | self.record.loader_cpus if self.record else CpuSet()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that it has in force, over those that the conf sets."""
        named = self.declared.settings.environment if self.declared else ()
        stated = dict(assignment.partition("=")[::2] for assignment in named)
        return {**stated, **(self.record.environment if self.record else {})}

    def directive(self, name: str) -> str | None:
        """Returns what the conf passes on as Service.NAME=; of several the last."""
        return dict(self.declared.directives).get(name) if self.declared else None


@dataclass(frozen=True)
class Doors:
    """The questions that a check may ask of the machine itself; each answers within a second, None where it cannot.

    `disk` and `is_missing` take a path, `resolve` a host's name; `clock_is_synchronised` is the kernel's word;
    `kernel_log` are the lines of the last hour in which a word stands.
    """

    disk: Callable[[str], Disk | None] = lambda path: None
    is_missing: Callable[[str], bool | None] = lambda path: None
    resolve: Callable[[str], tuple[str, ...] | None] = lambda name: None
    clock_is_synchronised: Callable[[], bool | None] = lambda: None
    kernel_log: Callable[[str], tuple[str, ...] | None] = lambda word: None


@dataclass(frozen=True)
class Host:
    """Everything that checks look at.

    `config` is None where the conf is invalid, and `conf_problems` say why; `conf_state` compares it with what is in
    force: "in sync", "newer", "broken" or "unknown". `live` is false for the files of another host, of which nothing
    runs here; `has_systemd` says whether systemd has answered, `is_root` as whom this looks. `other_units` are the
    properties of units that are not torchpar's services.
    """

    tree: Tree
    facts: HostFacts
    config: Config | None = None
    conf_problems: tuple[str, ...] = ()
    conf_state: str = "unknown"
    services: tuple[Service, ...] = ()
    other_units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    doors: Doors = Doors()
    live: bool = True
    has_systemd: bool = True
    is_root: bool = True

    def is_active(self, unit: str) -> bool:
        """Says whether a unit that is not torchpar's is active."""
        return self.other_units.get(unit, {}).get("ActiveState") == "active"
