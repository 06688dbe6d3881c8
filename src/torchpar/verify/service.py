"""Collects one service: its state, whether it runs as planned, and what is wrong with its unit, as JSON data.

A row's `wrong` is of contract/messages.py, in clauses that follow the unit's name: "does not run as planned (CPUs):
torchpar verify train@a".
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from torchpar.contract import preload
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import JobSettingsError, TorchparError
from torchpar.contract.fallback import Fallback, say_manifest
from torchpar.contract.given import Given, read_given
from torchpar.contract.job import parse_job_environment
from torchpar.contract.messages import trouble
from torchpar.contract.unit_names import guard_of, shorten
from torchpar.facts.running import RunningUnit
from torchpar.host.affinity import UnitMove
from torchpar.host.job_folder import is_idle
from torchpar.host.processes import SECONDS
from torchpar.host.systemd import Units
from torchpar.plan.record import ServiceRecord
from torchpar.verify.compare import Item, Verdict, local_share, summary, verify
from torchpar.verify.failure import EXIT_CODES, misplaced_by, state_of, why_failed, why_refused
from torchpar.verify.overrides import find_set_otherwise
from torchpar.verify.ranks import rank_states, world_size
from torchpar.verify.repair import make_repair

RUNNING = ("active", "reloading", "deactivating")
_SERVICE = re.compile(r"torchpar-(?P<kind>train|infer)@(?P<name>.+)\.service")
_AD_HOC = "torchpar-run-"
# A job tells its torch by itself.
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,40}")

_LEAST_SECONDS = 0.5
_STARTING_SECONDS = 5.0
# systemd's word for no limit, and for what it does not know.
_NO_NUMBER = 2**64 - 1


class ReadRunningUnit(Protocol):
    """The door to the processes of a unit."""

    def __call__(
        self, unit: str, main_pid: int, control_group: str, *, variables: Collection[str] = (), seconds: float = SECONDS
    ) -> RunningUnit:
        """Reads the processes of a unit, as far as that takes no more than so many seconds."""


@dataclass(frozen=True)
class Around:
    """The surroundings of all services in one look.

    `in_force_since` is when the active generation was put in force, in seconds since the epoch; `until` when the look
    should end, by the monotonic clock; `rendered` are the drop-ins of the generation, and `read_text` reads those of
    others: None where one cannot be read. `fallback` is what torchpard has done for services that it could not place.
    """

    in_force_since: float
    until: float
    rendered: Mapping[str, str] = field(default_factory=dict)
    fallback: Fallback | None = None
    read_text: Callable[[str], str | None] = lambda path: None

    def share(self) -> float:
        """Returns the seconds for one service's processes: one that holds whoever looks takes little from the rest."""
        return min(SECONDS, max(_LEAST_SECONDS, self.until - time.monotonic()))


def observe_service(
    systemd: Units, read_running_unit: ReadRunningUnit, plan: ServiceRecord, around: Around
) -> dict[str, Any]:
    """Collects a service that is in force."""
    row: dict[str, Any] = {
        "unit": plan.unit,
        "kind": plan.kind,
        "name": plan.name,
        "enabled": plan.enabled,
        "in_force": True,
        "cpus": str(plan.cpus),
        "given_cpus": len(plan.cpus | plan.loader_cpus),
        "shared": plan.shared,
        "memory_policy": {key: str(value) for key, value in vars(plan.memory_policy).items()},
        "allocator": plan.allocator,
        "threads": [rank.threads for rank in plan.ranks],
        "loader_workers": [rank.loader_workers for rank in plan.ranks],
        "budgets": [rank.budget for rank in plan.ranks],
        "listen": list(plan.listen),
    }
    try:
        properties = systemd.unit_properties(plan.unit)
    except TorchparError as error:
        unknown = {"state": "unknown", "placed": "unknown", "problem": str(error)}
        return {**row, **_unit({}), **unknown}
    row |= _unit(properties)
    row["planned_world_size"] = _planned_world_size(plan)
    row["misplaced"] = misplaced_by(properties) is not None
    row["wrong"] += find_set_otherwise(plan, properties, around.rendered, around.read_text)
    if row["state"] == "stopped":
        row |= _refused(systemd, plan.unit, around)
    if around.fallback and properties["ActiveState"] != "inactive":
        row["wrong"] += _fallen(plan, around.fallback)
    if not _runs(properties):
        return row
    running = read_unit(read_running_unit, plan.unit, properties, {*plan.environment, preload.WITHOUT}, around.share())
    given = _given(plan.unit, properties)
    items = _settled(verify(plan, running, given), properties)
    what = ", ".join(item.what for item in items if item.verdict is Verdict.DRIFT and not item.notice)
    row["wrong"] += [trouble("drift", notice) for notice in dict.fromkeys(item.notice for item in items) if notice]
    if what:
        if properties["ActiveEnterTimestamp"] / 1e6 < around.in_force_since:
            then = f"runs with what was in force when it started ({what}): systemctl restart {plan.unit}"
            row["wrong"].append(trouble("outdated", then))
        else:
            row["wrong"].append(trouble("drift", f"does not run as planned ({what}): torchpar verify {plan.title}"))
    row["memory_local_share"] = local_share(plan, running)
    row["rank_states"] = [asdict(rank) for rank in rank_states(plan, running, given)]
    row["world_size"] = world_size(running)
    row["torch"] = next((rank.torch for rank in running.ranks if _VERSION.fullmatch(rank.torch)), None)
    # An idle owner is beside whoever has its CPUs, and needs none; what it needs again is not lent any more.
    lent = CpuSet.union(loan.cpus for loan in given.loans if is_idle(loan.unit)) if given else CpuSet()
    row["running_cpus"] = str(_cpus_of(running) - plan.loader_cpus - lent or plan.cpus)
    return {**row, "placed": summary(items).value, "items": [item_json(item) for item in items]}


def _planned_world_size(plan: ServiceRecord) -> int | None:
    """Returns the ranks of a training job on all of its hosts, if all have as many; None where that is not known."""
    try:
        job = parse_job_environment(plan.environment) if plan.kind == "train" else None
    except JobSettingsError:
        return None
    # "2:4": at least, and at the most.
    nodes = job.nodes.rpartition(":")[2] if job else ""
    return int(nodes) * len(plan.ranks) if nodes.isdecimal() else None


def _refused(systemd: Units, unit: str, around: Around) -> dict[str, Any]:
    """Returns what is otherwise where the guard of a service has kept it from its last start: the unit itself knows
    nothing of that."""
    guard = guard_of(unit)
    if not any(path.startswith(f"{guard}.d/") for path in around.rendered):
        return {}
    try:
        properties = systemd.unit_properties(guard)
    except TorchparError:
        return {}
    if state_of(properties) != "failed":
        return {}
    since = _unit(properties)["since_monotonic_seconds"]
    failure = {"why": why_refused(guard, properties), "said": None}
    return {"state": "failed", "failure": failure, "since_monotonic_seconds": since}


def _settled(items: tuple[Item, ...], properties: Mapping[str, Any]) -> tuple[Item, ...]:
    """Returns the items without a drift that is none yet: a process is executed before it has loaded its libraries."""
    since = properties.get("ActiveEnterTimestampMonotonic")
    if not since or time.monotonic() - since / 1e6 > _STARTING_SECONDS:
        return items
    return tuple(
        replace(item, verdict=Verdict.UNKNOWN)
        if item.what == "allocator" and item.verdict is Verdict.DRIFT and not item.notice
        else item
        for item in items
    )


def observe_out_of_force(
    systemd: Units, read_running_unit: ReadRunningUnit, unit: str, around: Around
) -> dict[str, Any] | None:
    """Collects a unit of a service that has left the conf since it started; None where it is none of torchpar's.

    It goes on, without the limits of its drop-in once systemd has loaded the new ones, and ends or fails without being
    started as it was. Raises SystemdError.
    """
    match = _SERVICE.fullmatch(unit)
    if match is None:
        return None
    properties = systemd.unit_properties(unit)
    running = read_unit(read_running_unit, unit, properties, seconds=around.share())
    row = _undeclared(unit, match["kind"], match["name"], properties, str(_cpus_of(running)))
    state, cpus, section = row["state"], row["cpus"], f"[{match['kind'].capitalize()} {match['name']}]"
    row["state"] = "out of force, still running" if state == "running" else f"out of force, {state}"
    clause = (
        f"is out of force and still runs, on CPUs {cpus or 'unknown'}: to end it, systemctl stop {unit}; to keep it,"
        f" write {section} into the conf again and apply it"
    )
    row["wrong"] = [trouble("out-of-force", clause)]
    return {**row, "in_force": False}


def observe_ad_hoc(
    systemd: Units, read_running_unit: ReadRunningUnit, unit: str, around: Around
) -> dict[str, Any]:
    """Collects a job of `torchpar run`, which nobody declared. Raises SystemdError."""
    properties = systemd.unit_properties(unit)
    running = read_unit(read_running_unit, unit, properties, seconds=around.share())
    name = unit.removeprefix(_AD_HOC).removesuffix(".service")
    row = _undeclared(unit, "run", name, properties, str(_cpus_of(running)))
    variables = dict(variable.partition("=")[::2] for variable in properties.get("Environment", ()))
    try:
        job = parse_job_environment(variables)
    except JobSettingsError:
        job = None
    for key, values in (("threads", "threads"), ("loader_workers", "loader_workers"), ("budgets", "budget")):
        row[key] = [getattr(rank, values) for rank in job.ranks] if job else []
    return {**row, "in_force": True}


def _undeclared(unit: str, kind: str, name: str, properties: Mapping[str, Any], cpus: str) -> dict[str, Any]:
    return {
        "unit": unit, "kind": kind, "name": name, "enabled": False, "cpus": cpus, "running_cpus": cpus,
        "given_cpus": len(CpuSet.parse(cpus)), "shared": False, "memory_policy": {"policy": "", "nodes": ""},
        "allocator": "", "threads": [], "loader_workers": [], "budgets": [], "listen": [],
        **{key: value for key, value in _unit(properties).items() if key != "running_cpus"},
    }  # fmt: skip


def _unit(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Makes what systemd says of a unit."""
    state = state_of(properties) if properties else "unknown"
    since = "ActiveEnterTimestampMonotonic" if state == "running" else "StateChangeTimestampMonotonic"
    limit = properties.get("MemoryMax", _NO_NUMBER)
    # That of the main process: a unit that waits to be started again has left its inactive state since.
    began = properties.get("ExecMainStartTimestamp") or properties.get("InactiveExitTimestamp")
    return {
        "state": state,
        "main_pid": properties.get("MainPID", 0),
        "since_monotonic_seconds": properties[since] / 1e6 if properties.get(since) else None,
        "invocation": bytes(properties.get("InvocationID", ())).hex(),
        "run_began_unix_seconds": began / 1e6 if began else None,
        "restarts": properties.get("NRestarts", 0),
        "restarts_in_10_minutes": None,
        "failure": {"why": why_failed(properties), "said": None} if state in ("failed", "restarting") else None,
        # "!" before it: it may be missing.
        "working_directory": str(properties.get("WorkingDirectory", "")).lstrip("!-"),
        "checkpoint_monotonic_seconds": None,
        "checkpoint_complete": None,
        "memory_local_share": None,
        "rank_states": [],
        "world_size": None,
        "planned_world_size": None,
        "last_stop": None,
        "torch": None,
        "control_group": str(properties.get("ControlGroup", "")),
        "memory_limit_bytes": None if limit == _NO_NUMBER else limit,
        "running_cpus": "",
        "placed": None,
        "items": [],
        "wrong": [],
        "problem": None,
    }


def _fallen(plan: ServiceRecord, fallback: Fallback) -> list[dict[str, str]]:
    """Says that a service runs on less than it had, as its start had failed."""
    for one in fallback.units:
        if one.unit != plan.unit:
            continue
        failed = f"since its start had failed: {EXIT_CODES[one.status]}"
        if one.is_without:
            boots = "until this host boots, or has other CPUs or memory nodes"
            return [trouble("fallback", f"runs without what systemd could not set, {failed}; {boots}")]
        if fallback.before != fallback.host:
            now = say_manifest(fallback.host, fallback.before)
            then = say_manifest(fallback.before, fallback.host)
            clause = f"is placed for {now} of this host, which had {then}, {failed}; it goes back when they are back"
            return [trouble("fallback", clause)]
    return []


def _runs(properties: Mapping[str, Any]) -> bool:
    return properties["ActiveState"] in RUNNING and bool(properties["MainPID"])


def _cpus_of(running: RunningUnit) -> CpuSet:
    return CpuSet.union(cpus for process in running.processes for cpus in (process.threads or {}).values())


def verify_unit(
    plan: ServiceRecord,
    properties: Mapping[str, Any],
    read_running_unit: ReadRunningUnit,
    seconds: float = SECONDS,
) -> tuple[Item, ...]:
    """Compares a running unit with its plan; its processes are read for so many seconds at the most."""
    variables = {*plan.environment, preload.WITHOUT}
    running = read_unit(read_running_unit, plan.unit, properties, variables, seconds)
    return _settled(verify(plan, running, _given(plan.unit, properties)), properties)


def _given(unit: str, properties: Mapping[str, Any]) -> Given | None:
    """Reads what torchpard has given a unit in this run of it; see InvocationID in org.freedesktop.systemd1(5)."""
    given = read_given(unit)
    return given if given and given.invocation == bytes(properties.get("InvocationID", ())).hex() else None


def find_repair(
    plan: ServiceRecord, properties: Mapping[str, Any], read_running_unit: ReadRunningUnit
) -> UnitMove | None:
    """Finds the threads of a running unit that are on other CPUs than they may; None where there are none."""
    running = read_unit(read_running_unit, plan.unit, properties, (), SECONDS)
    return make_repair(plan, running, _given(plan.unit, properties), properties.get("ControlGroup", ""))


def read_unit(
    read_running_unit: ReadRunningUnit,
    unit: str,
    properties: Mapping[str, Any],
    variables: Collection[str] = (),
    seconds: float = SECONDS,
) -> RunningUnit:
    """Reads the processes of a unit, by its properties."""
    group = properties.get("ControlGroup", "")
    return read_running_unit(unit, properties["MainPID"], group, variables=variables, seconds=seconds)


def item_json(item: Item) -> dict[str, str]:
    """Returns an item as JSON data."""
    known = {"what": item.what, "verdict": item.verdict.value, "expected": item.expected, "actual": item.actual}
    return {**known, "notice": item.notice} if item.notice else known


def title(row: Mapping[str, Any]) -> str:
    """Returns the title by which people call what a row is of: "train@demo", "run-train-4711"."""
    return shorten(str(row["unit"]))
