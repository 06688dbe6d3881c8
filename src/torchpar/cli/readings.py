"""Reads what doctor's checks look at: the host, its conf, the generation in force, and what runs of it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path

from torchpar.conf.parse import parse_config
from torchpar.conf.services import Config
from torchpar.contract.errors import ConfigError, StoreError, TorchparError
from torchpar.contract.given import read_given
from torchpar.doctor.host import Doors, Host, Service
from torchpar.facts.topology import HostFacts
from torchpar.generations.store import Store
from torchpar.host.clocks import clock_is_synchronised
from torchpar.host.conf import ConfReader
from torchpar.host.disk import Disks
from torchpar.host.facts import read_facts
from torchpar.host.inputs import LIVE
from torchpar.host.names import resolve
from torchpar.host.openmp import read_openmp
from torchpar.host.processes import read_running_unit
from torchpar.host.sysfs import Tree
from torchpar.host.systemd import is_running
from torchpar.host.unit_state import read_kernel_log, read_loaded, read_units
from torchpar.plan.record import ServiceRecord
from torchpar.verify.observe import live_readers, observe_conf

# In which the processes of all services are read; one that comes later has its moment, too.
_SECONDS, _LEAST = 0.8, 0.05
_MOST_PROCESSES = 64

_PROPERTIES = """
    LoadState ActiveState SubState Result InvocationID MainPID ControlGroup NRestarts ExecMainStatus DropInPaths
    TimeoutStopUSec MemoryDenyWriteExecute LimitMEMLOCKSoft LimitNOFILESoft TasksMax TasksCurrent CPUQuotaPerSecUSec
""".split()
_PATTERNS = ("torchpar-train@*.service", "torchpar-infer@*.service")
_OTHERS = """
    torchpard.service numad.service earlyoom.service nohang.service systemd-oomd.service systemd-timesyncd.service
    chrony.service ntpsec.service ntp.service openntpd.service torchpar-metrics.timer torchpar-metrics.service
""".split()


def read_host(root: Path = LIVE) -> Host:
    """Reads the host below a root. Raises FactsError where it shows no machine."""
    live = root == LIVE
    facts = read_facts(root)
    config, problems = _read_conf(root, facts)
    records, state, broken = _read_in_force() if live else ((), "unknown", None)
    declared = {each.unit: each for each in config.services} if config else {}
    planned = {each.unit: each for each in records}
    has_systemd = live and is_running()
    loaded = read_loaded(_PATTERNS, _PROPERTIES) if has_systemd else {}
    # What is neither declared nor in force may have failed, or still run.
    left = {unit for unit, each in loaded.items() if each.get("ActiveState") not in ("inactive", None)}
    units = sorted({*declared, *planned, *left})
    sockets = [f"{unit.removesuffix('.service')}.socket" for unit in units if unit.startswith("torchpar-infer@")]
    shown = read_units([*units, *_OTHERS, *sockets], _PROPERTIES) if has_systemd else {}
    until = time.monotonic() + _SECONDS
    known = (Service(unit, declared.get(unit), planned.get(unit), shown.get(unit, {})) for unit in units)
    services = tuple(_with_processes(service, until) for service in known if not _is_example(service, root))
    disks = Disks()
    doors = Doors(disks.read, disks.is_missing, resolve, clock_is_synchronised, read_kernel_log) if live else Doors()
    return Host(
        tree=Tree(root),
        facts=facts,
        config=config,
        conf_problems=problems or ((broken,) if broken else ()),
        conf_state=state,
        services=services,
        other_units={unit: shown[unit] for unit in (*_OTHERS, *sockets) if unit in shown},
        doors=doors,
        live=live,
        has_systemd=bool(shown),
        is_root=os.geteuid() == 0,
    )


def _read_conf(root: Path, facts: HostFacts) -> tuple[Config | None, tuple[str, ...]]:
    try:
        return parse_config(ConfReader().read(root, trusted=root == LIVE), facts), ()
    except ConfigError as error:
        return None, error.problems


def _read_in_force() -> tuple[tuple[ServiceRecord, ...], str, str | None]:
    """Reads the services in force, how the conf compares with them, and what is wrong with the conf.

    There are none where the store cannot be read.
    """
    try:
        active = Store().active()
        content = active.read() if active else None
        records = content.services() if content else ()
    except StoreError:
        return (), "unknown", None
    seen = observe_conf(active, content, live_readers())
    return records, seen["state"], seen["problem"] if seen["state"] == "broken" else None


def _is_example(service: Service, root: Path) -> bool:
    """Says whether it is one that the package declares, such as the demo, and that nobody has started."""
    if service.declared is None or service.runs:
        return False
    return service.declared.place("").file.removeprefix(str(root).rstrip("/")).startswith("/usr/lib/")


def _with_processes(service: Service, until: float) -> Service:
    if not service.runs:
        return service
    pid = int(service.properties["MainPID"])
    seconds = max(_LEAST, until - time.monotonic())
    try:
        running = read_running_unit(service.unit, pid, service.properties.get("ControlGroup", ""), seconds=seconds)
    except TorchparError:
        return service
    pids = [process.pid for process in running.processes if process.cpu_seconds][:_MOST_PROCESSES]
    openmp: Mapping[int, tuple[str, ...]] = read_openmp(pids, max(_LEAST, until - time.monotonic()))
    given = read_given(service.unit)
    if given and given.invocation != service.properties.get("InvocationID"):
        given = None
    return dataclasses.replace(service, running=running, openmp=openmp, given=given)
