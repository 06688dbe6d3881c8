"""Makes hosts for doctor's checks: files below a root, a conf that is planned for real, and made-up processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank
from torchpar.doctor.host import Doors, Host, Service
from torchpar.facts.disk import Disk
from torchpar.facts.running import Process, RunningUnit
from torchpar.facts.topology import HostFacts
from torchpar.host.sysfs import Tree
from torchpar.plan.plan import make_plan, plan_json
from torchpar.plan.record import parse_plan

TRAIN = "torchpar-train@a.service"
OTHER = "torchpar-train@b.service"
INFER = "torchpar-infer@i.service"
ACTIVE = {"ActiveState": "active", "MainPID": "100", "ControlGroup": "/t", "LoadState": "loaded", "NRestarts": "0"}
CONF = "[Host]\nReserveCores=0\n[Train a]\nScript=/a.py\n"
ROOMY = Disk(2**40, 2**39, 2**20, 2**19)


@dataclass(frozen=True)
class Made:
    """A host: of what is not given there is nothing, and all is well with the rest."""

    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    facts: HostFacts = field(default_factory=make_host)
    conf: str = CONF
    planned: bool = True
    show: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    running: Mapping[str, RunningUnit] = field(default_factory=dict)
    openmp: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    given: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    disks: Mapping[str, Disk] = field(default_factory=dict)
    missing: Sequence[str] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    clock: bool | None = True
    log: tuple[str, ...] | None = ()
    problems: tuple[str, ...] = ()
    state: str = "in sync"
    modes: Mapping[str, int] = field(default_factory=dict)
    cpus_now: str | None = None
    root: bool = True
    broken: bool = False

    def make(self, folder: Path) -> Host:
        """Makes it below a folder."""
        for path, text in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        for path, target in self.links.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(target)
        for path, mode in self.modes.items():
            (folder / path).mkdir(parents=True, exist_ok=True)
            (folder / path).chmod(mode)
        config = parse_config([ConfFile("/etc/torchpar.conf", self.conf)], self.facts)
        records = {}
        if self.planned and config.services:
            plan = make_plan(config, self.facts)
            records = {each.unit: each for each in parse_plan(json.dumps(plan_json(plan)))}
        services = tuple(
            Service(
                each.unit,
                None if self.broken else each,
                records.get(each.unit),
                self.show.get(each.unit, {}),
                self.running.get(each.unit),
                self.openmp,
                given(each.unit, self.given) if self.given else None,
            )
            for each in config.services
        )
        facts = self.facts
        if self.cpus_now:
            facts = replace(facts, online_cpus=CpuSet.parse(self.cpus_now), allowed_cpus=CpuSet.parse(self.cpus_now))
        doors = Doors(
            disk=lambda path: self.disks.get(path, ROOMY),
            is_missing=lambda path: path in self.missing,
            resolve=self.names.get,
            clock_is_synchronised=lambda: self.clock,
            kernel_log=lambda word: None if self.log is None else tuple(line for line in self.log if word in line),
        )
        others = {unit: {"ActiveState": state} for unit, state in self.units.items()}
        return Host(
            tree=Tree(folder),
            facts=facts,
            config=None if self.broken else config,
            conf_problems=self.problems,
            conf_state=self.state,
            services=services,
            other_units=others,
            doors=doors,
            is_root=self.root,
        )


def given(unit: str, cpus: str) -> Given:
    """What torchpard has given a unit of one rank."""
    return Given(unit, "1", (GivenRank(CpuSet.parse(cpus), 1),), (GivenRank(CpuSet.parse("0-3"), 4),), 0.0)


def process(
    pid: int = 100, cpus: str = "0-3", *, pages: Mapping[int, int] | None = None, known: bool = True
) -> Process:
    """A process that computes with torch."""
    return Process(
        pid=pid,
        threads={pid: CpuSet.parse(cpus), pid + 1: CpuSet.parse(cpus)},
        policies={"default": 9},
        pages=pages or {0: 9},
        allocator="tcmalloc" if known else None,
        environment={},
        cpu_seconds={pid: 9.0, pid + 1: 9.0},
    )


def running(unit: str, *processes: Process, throttled: int | None = None, unread: str = "") -> RunningUnit:
    """A unit with these processes, whose quota has stopped it in so many of a hundred periods."""
    return RunningUnit(unit, 100, processes, True, throttled=throttled, periods=100 if throttled else 0, unread=unread)
