"""Collects the state of the host: the conf, the active generation, the host and every running service.

`torchpar status` prints it, torchpard keeps it; both get it here, as JSON data.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract import preload
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import ConfigError, PlacementError, Problem, StoreError, TorchparError
from torchpar.facts.running import RunningUnit
from torchpar.facts.topology import HostFacts
from torchpar.generations.drift import find_drift
from torchpar.generations.generation import Content, Generation
from torchpar.generations.store import Store
from torchpar.generations.unconfirmed import Unconfirmed
from torchpar.host.conf import ConfReader
from torchpar.host.facts import read_facts, read_manifest
from torchpar.host.processes import SECONDS, read_running_unit
from torchpar.host.systemd import Units, loaded_units
from torchpar.plan.plan import make_plan
from torchpar.plan.record import ServiceRecord
from torchpar.verify.compare import Item, Verdict, summary, verify

# Exit codes of systemd's own, which say more than a number (systemd.exec(5)), and torchpar's.
_EXIT_CODES = {
    78: "configuration",
    200: "its working directory cannot be entered",
    203: "its program cannot be run",
    215: "its CPUs cannot be set (CPU affinity)",
    217: "its user does not exist",
    226: "its sandbox cannot be set up",
    228: "its system call filter cannot be set",
    238: "its state directory cannot be made",
    242: "its memory policy cannot be set (NUMA policy)",
    243: "its TLS certificate or key cannot be read (credentials)",
}

_RUNNING = ("active", "reloading", "deactivating")

# In which the processes of all services are read where that is possible. A service that comes later has its time too.
_SECONDS_OF_ALL = 20.0
_LEAST_SECONDS = 0.5
_AT_ONCE = 4


class Conf(Protocol):
    """The door to the conf's files."""

    def read(self, *, trusted: bool) -> tuple[ConfFile, ...]:
        """Reads the conf's files. Raises ConfigError."""

    def stamp(self) -> object:
        """Returns a value that changes whenever a file changes, comes or goes."""


class ReadRunningUnit(Protocol):
    """The door to the processes of a unit."""

    def __call__(
        self, unit: str, main_pid: int, control_group: str, *, variables: Collection[str] = (), seconds: float = SECONDS
    ) -> RunningUnit:
        """Reads the processes of a unit, as far as that takes no more than so many seconds."""


@dataclass(frozen=True)
class Readers:
    """The doors to what is looked at besides systemd. `loaded`: see find_drift()."""

    conf: Conf
    read_facts: Callable[[], HostFacts]
    read_manifest: Callable[[], Mapping[str, str]]
    read_running_unit: ReadRunningUnit
    loaded: Callable[[], Path | None]


def live_readers() -> Readers:
    """Makes the readers of this host."""
    return Readers(ConfReader(), read_facts, read_manifest, read_running_unit, loaded_units)


def observe(store: Store, systemd: Units, readers: Readers) -> dict[str, Any]:
    """Collects the whole state as JSON data. Whatever cannot be read is said in it, not raised."""
    notices: list[str] = []
    # None where that cannot be known.
    planned: tuple[ServiceRecord, ...] | None = None
    try:
        active = store.active()
        content = active.read() if active else None
        planned = _planned(content, notices) if content else ()
    except StoreError as error:
        active = content = None
        notices.append(str(error))
    if active is None and planned is not None:
        notices.append("nothing has been applied on this host yet; run: torchpar apply")
    waits = _unconfirmed(store, active, notices) if active else None
    notices += (drift for drift in find_drift(store, readers.loaded()) if drift not in notices)
    manifest = readers.read_manifest()
    conf = observe_conf(active, content, readers)
    notices += conf["notices"]
    if content and content.manifest != manifest:
        notices.append(
            f"generation {active.number if active else '?'} was made for CPUs {content.manifest['cpus_online']}, this "
            f"host has {manifest['cpus_online']} now; make a new one: torchpar apply"
        )
    services = []
    until = time.monotonic() + _SECONDS_OF_ALL
    if planned:
        since = _in_force_since(store)
        # A few at a time, so that one that takes long keeps few others waiting.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            services = list(
                pool.map(lambda service: observe_service(systemd, readers, service, since, until=until), planned)
            )
    for service in services:
        notices += service.pop("notices")
    if planned is not None:
        strays, more = observe_out_of_force(
            systemd, readers.read_running_unit, {service["unit"] for service in services}, until
        )
        services += strays
        notices += more
    return {
        "version": 1,
        "generation": active.number if active else None,
        "unconfirmed": dataclasses.asdict(waits) if waits else None,
        "conf": conf["state"],
        "conf_problem": conf["problem"],
        "auto_apply": conf["auto_apply"],
        "services": services,
        "notices": notices,
    }


def _in_force_since(store: Store) -> float:
    """Reads the time when the active generation was put in force; 0 where its link has gone since it was read."""
    try:
        return os.lstat(store.link).st_mtime
    except OSError:
        return 0.0


def _unconfirmed(store: Store, active: Generation, notices: list[str]) -> Unconfirmed | None:
    try:
        return store.unconfirmed(active)
    except StoreError as error:
        notices.append(str(error))
        return None


def _planned(content: Content, notices: list[str]) -> tuple[ServiceRecord, ...] | None:
    try:
        return content.services()
    except StoreError as error:
        notices.append(str(error))
        return None


def observe_conf(active: Generation | None, content: Content | None, readers: Readers) -> dict[str, Any]:
    """Says whether the conf is "in sync" with the active generation, "newer", "broken" or "unknown", with notices.

    One that does not fit this host is broken too: `torchpar apply` would refuse it.
    """
    number = f"generation {active.number}" if active else "what is in force"
    try:
        files = readers.conf.read(trusted=True)
        if content and files == content.conf:
            return {"state": "in sync", "problem": None, "notices": [], "auto_apply": False}
        facts = readers.read_facts()
        config = parse_config(files, facts)
        # Interpreters decide nothing about whether it fits, and may be on a file system that does not answer.
        make_plan(config, facts)
    except ConfigError as error:
        at = "at " if isinstance(error.found[0], Problem) else ""
        return _broken(f"{at}{error.problems[0]}", len(error.problems) - 1, number)
    except PlacementError as error:
        return _broken(f"at {error}" if error.unit else str(error), 0, number)
    except TorchparError as error:
        return {"state": "unknown", "problem": str(error), "notices": [str(error)], "auto_apply": False}
    notice = f"the conf is newer than {number}; see: torchpar diff, then: systemctl reload torchpard"
    return {"state": "newer", "problem": None, "notices": [notice], "auto_apply": config.host.auto_apply}


def _broken(problem: str, others: int, number: str) -> dict[str, Any]:
    more = f" (and {others} more; see: torchpar validate)" if others else ""
    notices = [f"the conf is broken {problem}{more}; {number} stays in force"]
    return {"state": "broken", "problem": problem, "notices": notices, "auto_apply": False}


def observe_out_of_force(
    systemd: Units, read_running_unit: ReadRunningUnit, in_force: Collection[str], until: float = math.inf
) -> tuple[list[dict[str, Any]], list[str]]:
    """Collects the services that run and are in no generation in force, and notices about them and sockets like them.

    Such a service has left the conf since it started. It goes on, without the limits of its drop-in once systemd has
    loaded the new ones, and ends or fails without being started as it was.
    """
    rows, notices = [], []
    try:
        for unit in systemd.running_services():
            if unit not in in_force and (match := _UNIT.fullmatch(unit)):
                properties = systemd.unit_properties(unit)
                running = _read(read_running_unit, unit, properties, seconds=_share(until))
                rows.append(_out_of_force(running, match["kind"], match["name"], properties))
        sockets = [unit for unit in systemd.open_sockets() if f"{unit.removesuffix('.socket')}.service" not in in_force]
    except TorchparError as error:
        return rows, [str(error)]
    for row in rows:
        unit, section = row["unit"], f"[{row['kind'].capitalize()} {row['name']}]"
        notices.append(
            f"{unit} is out of force and still runs, on CPUs {row['cpus'] or 'unknown'}: to end it, systemctl stop"
            f" {unit}; to keep it, write {section} into the conf again and apply it"
        )
    notices += [f"{unit} is out of force and still listens; to end that: systemctl stop {unit}" for unit in sockets]
    return rows, notices


_UNIT = re.compile(r"torchpar-(?P<kind>train|infer)@(?P<name>.+)\.service")


def _out_of_force(running: RunningUnit, kind: str, name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    cpus = CpuSet.union(cpus for process in running.processes for cpus in (process.threads or {}).values())
    state = _state(properties)
    return {
        "unit": running.unit, "kind": kind, "name": name, "enabled": False, "in_force": False, "cpus": str(cpus),
        "memory_policy": {"policy": "", "nodes": ""}, "allocator": "", "threads": [], "loader_workers": [],
        "budgets": [], "main_pid": running.main_pid, "placed": None, "items": [],
        "state": "out of force, still running" if state == "running" else f"out of force, {state}",
    }  # fmt: skip


def observe_service(
    systemd: Units, readers: Readers, plan: ServiceRecord, in_force_since: float, *, until: float = math.inf
) -> dict[str, Any]:
    """Collects one service: its state in words, and whether it runs as planned."""
    unit = plan.unit
    row: dict[str, Any] = {
        "unit": unit,
        "kind": plan.kind,
        "name": plan.name,
        "enabled": plan.enabled,
        "cpus": str(plan.cpus),
        "memory_policy": {key: str(value) for key, value in vars(plan.memory_policy).items()},
        "allocator": plan.allocator,
        "in_force": True,
        "threads": [rank.threads for rank in plan.ranks],
        "loader_workers": [rank.loader_workers for rank in plan.ranks],
        "budgets": [rank.budget for rank in plan.ranks],
    }
    try:
        properties = systemd.unit_properties(unit)
    except TorchparError as error:
        return {**row, "state": "unknown", "main_pid": 0, "placed": "unknown", "items": [], "notices": [str(error)]}
    row["state"] = _state(properties)
    row["main_pid"] = properties["MainPID"]
    if properties["ActiveState"] not in _RUNNING or not properties["MainPID"]:
        return {**row, "placed": None, "items": [], "notices": []}
    items = verify_unit(plan, properties, readers.read_running_unit, _share(until))
    verdict = summary(items)
    notices = [f"{unit} {notice}" for notice in dict.fromkeys(item.notice for item in items) if notice]
    what = ", ".join(item.what for item in items if item.verdict is Verdict.DRIFT and not item.notice)
    if what:
        if properties["ActiveEnterTimestamp"] / 1e6 < in_force_since:
            notices.append(f"{unit} runs with what was in force when it started ({what}): systemctl restart {unit}")
        else:
            notices.append(f"{unit} does not run as planned ({what}): torchpar verify {plan.title}")
    return {**row, "placed": verdict.value, "items": [item_json(item) for item in items], "notices": notices}


def verify_unit(
    plan: ServiceRecord,
    properties: Mapping[str, Any],
    read_running_unit: ReadRunningUnit,
    seconds: float = SECONDS,
) -> tuple[Item, ...]:
    """Compares a running unit with its plan; its processes are read for so many seconds at the most."""
    variables = {*plan.environment, preload.WITHOUT}
    return verify(plan, _read(read_running_unit, plan.unit, properties, variables, seconds=seconds))


def _read(
    read_running_unit: ReadRunningUnit,
    unit: str,
    properties: Mapping[str, Any],
    variables: Collection[str] = (),
    *,
    seconds: float,
) -> RunningUnit:
    group = properties.get("ControlGroup", "")
    return read_running_unit(unit, properties["MainPID"], group, variables=variables, seconds=seconds)


def _share(until: float) -> float:
    """Returns the seconds for one service's processes: one that holds whoever looks takes little from the others."""
    return min(SECONDS, max(_LEAST_SECONDS, until - time.monotonic()))


def item_json(item: Item) -> dict[str, str]:
    """Returns an item as JSON data."""
    known = {"what": item.what, "verdict": item.verdict.value, "expected": item.expected, "actual": item.actual}
    return {**known, "notice": item.notice} if item.notice else known


def _state(properties: Mapping[str, Any]) -> str:
    state = str(properties["ActiveState"])
    if state != "failed" and not (state == "activating" and properties["SubState"] == "auto-restart"):
        return {"active": "running", "inactive": "stopped"}.get(state, state)
    code = properties["ExecMainStatus"] if properties.get("ExecMainPID") else 0
    for command in properties.get("ExecStartPre", []):
        # (path, arguments, ignore, start, ..., pid, code, status): a failed one never lets the main process start.
        code = command[-1] or code
    why = _EXIT_CODES.get(code, f"exit status {code}" if code else str(properties.get("Result", "")))
    return f"{'failed' if state == 'failed' else 'restarting'}: {why}"
