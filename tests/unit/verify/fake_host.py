"""A host of tests: its conf, its CPUs and the processes of its services are made up; its store is a real one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.generations.fake_systemd import FakeSystemd
from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, Place, Problem
from torchpar.facts.running import Process, RunningUnit
from torchpar.facts.topology import HostFacts
from torchpar.generations.compile import compile_as_applied, compile_conf
from torchpar.generations.generation import Content, Generation
from torchpar.generations.store import Store
from torchpar.plan.inputs import Inputs
from torchpar.verify.observe import Readers

TRAIN, INFER = "torchpar-train@a.service", "torchpar-infer@b.service"
TEXT = "[Host]\nReserveCores=0\n[Train a]\nScript=/a.py\nEnabled=yes\n[Infer b]\nModel=/b.pt\nEnabled=yes\n"


@dataclass
class FakeJournal:
    """Has `restarts` of each unit, None where it cannot be read, and `lines` of units, each with its time."""

    restarts: dict[str, int] | None = field(default_factory=dict)
    lines: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def count_restarts(self, units: Collection[str], seconds: float) -> dict[str, int] | None:
        assert seconds == 600
        self.asked += units
        return self.restarts

    def read_last_lines(self, unit: str, since: float | None, until: float | None) -> tuple[str, ...]:
        first, last = since or 0.0, until or float("inf")
        return tuple(line for time, line in self.lines.get(unit, ()) if first <= time <= last)


@dataclass
class FakeHost:
    """Four cores and a conf that has not been applied. `text` is None where it cannot be read; `loaded` has what
    systemd has read, where it runs."""

    store: Store
    text: str | None = TEXT
    facts: HostFacts = field(default_factory=make_host)
    manifest: dict[str, str] = field(default_factory=lambda: {"cpus_online": "0-3", "nodes_online": "0"})
    processes: dict[str, tuple[Process, ...]] = field(default_factory=dict)
    asked: list[tuple[str, float]] = field(default_factory=list)
    loaded: Path | None = None
    journal: FakeJournal = field(default_factory=lambda: FakeJournal())
    unit_files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store.directory.parent.chmod(0o755)
        self.systemd = FakeSystemd(self.store)
        self.readers = Readers(
            self,
            lambda: self.facts,
            lambda: self.manifest,
            self.read_running_unit,
            lambda: self.loaded,
            self.journal,
            self.unit_files.get,
        )

    def read(self, *, trusted: bool) -> tuple[ConfFile, ...]:
        assert trusted, "whoever can write the conf decides what runs as whom"
        if self.text is None:
            raise ConfigError([Problem(Place("/etc/torchpar.conf"), "cannot be read")])
        return (ConfFile("/etc/torchpar.conf", self.text),)

    def stamp(self) -> object:
        return self.text

    def compile(self) -> Content:
        """What the conf comes to."""
        return compile_conf(self._inputs()).content

    def compile_as_applied(self) -> Content:
        """What it comes to without what no longer fits."""
        return compile_as_applied(self._inputs()).content

    def _inputs(self) -> Inputs:
        files = self.read(trusted=True)
        return Inputs(parse_config(files, self.facts), self.facts, files, {}, self.manifest)

    def apply(self) -> Generation:
        """Put the conf in force."""
        with self.store.locked():
            made = self.store.write(self.compile())
            self.store.activate(made)
        return made

    def start(self, unit: str) -> None:
        """Start a service, which runs as planned."""
        (plan,) = (service for service in self.compile().services() if service.unit == unit)
        pid = 1000 + len(self.processes)
        self.systemd.runs[unit] = "now"
        self.systemd.properties[unit] = {"MainPID": pid, "ControlGroup": f"/{unit}", "ActiveEnterTimestamp": 2**60}
        self.processes[unit] = (
            Process(
                pid=pid,
                threads={pid: plan.cpus},
                policies={f"prefer:{plan.memory_policy.nodes}": 9},
                pages={0: 9},
                allocator=plan.allocator,
                environment=dict(plan.environment),
            ),
        )

    def read_running_unit(
        self, unit: str, main_pid: int, control_group: str, *, variables: Collection[str] = (), seconds: float = 5.0
    ) -> RunningUnit:
        self.asked.append((unit, seconds))
        return RunningUnit(unit=unit, main_pid=main_pid, processes=self.processes.get(unit, ()), has_numa=True)


def make_fake_host(folder: Path) -> FakeHost:
    """One with no store yet."""
    return FakeHost(Store(folder / "torchpar"))
