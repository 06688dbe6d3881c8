"""Renders what torchpard and the kernel say of the services as Prometheus metrics; torchpar-metrics(7) lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchpar.contract.cpulist import CpuSet
from torchpar.facts.counters import UnitCounters
from torchpar.host.clocks import TimeOfDay
from torchpar.verify.service import RUNNING

Samples = list[tuple[Mapping[str, str], float]]


@dataclass(frozen=True)
class Sample:
    """Everything that is rendered. `answer` is torchpard's, None where it does not answer.

    `now` is the time of day in seconds, `applied` that of the last apply, None where nothing is in force; `sha256` are
    the first letters of the sum of the conf in force. `last_apply`: whether the last apply of this boot succeeded, and
    when it ended.
    """

    version: str
    now: float
    answer: Mapping[str, Any] | None
    counters: Mapping[str, UnitCounters] = field(default_factory=dict)
    applied: float | None = None
    sha256: str = ""
    reboot_required: bool = False
    clock: TimeOfDay | None = None
    last_apply: tuple[bool, float] | None = None


@dataclass(frozen=True)
class Family:
    """One metric: its name without the prefix, its type, its help, and the labels that its samples have."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


_UNIT = ("unit",)
_RANK = ("unit", "local_rank")

FAMILIES = (
    Family("build_info", "gauge", "Always 1; the version is a label.", ("version",)),
    Family("torchpard_up", "gauge", "1: torchpard answers. Without it there are only metrics of the host."),
    Family("last_check_timestamp_seconds", "gauge", "When these metrics were made, in seconds since the epoch."),
    Family("reboot_required", "gauge", "1: an upgrade asks for a restart of the host."),
    Family("clock_synchronised", "gauge", "1: a daemon keeps the clock right."),
    Family("clock_offset_seconds", "gauge", "What the kernel still corrects of the clock; chrony does it by itself."),
    Family("clock_max_error_seconds", "gauge", "The most by which the clock may be wrong; 16 where nobody keeps it."),
    Family("config_valid", "gauge", "1: the conf could be applied. 0: it has a mistake, or does not fit this host."),
    Family("config_applied", "gauge", "1: the conf is in force. 0: it is newer than what is in force, or broken."),
    Family(
        "config_info",
        "gauge",
        "Always 1; generation and checksum of the conf in force are labels.",
        ("generation", "sha256"),
    ),
    Family("last_apply_timestamp_seconds", "gauge", "When what is in force was put in force."),
    Family("last_apply_success", "gauge", "1: the last apply since the boot has done its work. 0: it has failed."),
    Family("last_apply_end_timestamp_seconds", "gauge", "When that apply ended, also one that changed nothing."),
    Family("notices", "gauge", "Things that torchpar status says need attention."),
    Family("config_in_sync", "gauge", "1: the service does not run, or runs as planned. 0: something drifted.", _UNIT),
    Family(
        "restart_required",
        "gauge",
        "1: the service runs with older settings, and gets the new ones by a restart.",
        _UNIT,
    ),
    Family("unit_info", "gauge", "Always 1; the torch that runs in the service is a label.", ("unit", "torch")),
    Family("unit_in_force", "gauge", "0: the service has left the conf, and still runs.", _UNIT),
    Family("unit_active", "gauge", "1: the service is active.", _UNIT),
    Family("unit_failed", "gauge", "1: the service has failed, and is not started again.", _UNIT),
    Family("unit_restarts_total", "counter", "Automatic restarts of the service since it was started.", _UNIT),
    Family("unit_ranks", "gauge", "Processes that are planned for the service.", _UNIT),
    Family("unit_affinity_ok", "gauge", "1: every thread is on the CPUs that are planned for it.", _UNIT),
    Family("unit_memory_policy_ok", "gauge", "1: the memory policy is the planned one.", _UNIT),
    Family("unit_memory_local_ratio", "gauge", "Share of the memory that is on the planned nodes, from 0 to 1.", _UNIT),
    Family("rank_threads", "gauge", "Compute threads that are planned for a rank.", _RANK),
    Family("rank_runnable_threads", "gauge", "Threads of a rank that ran or waited for a CPU when looked at.", _RANK),
    Family("rank_affinity_ok", "gauge", "1: every thread of the rank is on its CPUs.", _RANK),
    Family("rank_memory_local_ratio", "gauge", "Share of a rank's memory on the nodes of its CPUs, 0 to 1.", _RANK),
    Family("unit_cpu_seconds_total", "counter", "CPU time of the service.", _UNIT),
    Family("unit_memory_bytes", "gauge", "Memory of the service, with its page cache.", _UNIT),
    Family(
        "unit_cpu_throttled_periods_total", "counter", "Periods in which a CPU quota has stopped the service.", _UNIT
    ),
    Family(
        "unit_pressure_waiting_seconds_total",
        "counter",
        "Time in which some process of the service has waited for a resource.",
        ("unit", "resource"),
    ),
    Family(
        "unit_shared_cpus",
        "gauge",
        "CPUs of a running service that another running one uses, too, unless both have CPUs=shared.",
        _UNIT,
    ),
    Family("job_steps_total", "counter", "Optimizer steps of the job's present run.", _UNIT),
    Family("job_steps_per_second", "gauge", "Speed of the job.", _UNIT),
    Family(
        "job_samples_per_second", "gauge", "Speed of the job; 0 where it does not say how large its batches are.", _UNIT
    ),
    Family("job_loader_wait_ratio", "gauge", "Share of its time that the job waits for data, from 0 to 1.", _UNIT),
    Family("job_silent_seconds", "gauge", "Time since the job last said how far it is.", _UNIT),
    Family("job_ranks", "gauge", "Ranks of the job on this host that say how far they are.", _UNIT),
    Family("job_checkpoint_age_seconds", "gauge", "Time since the job wrote its last checkpoint in this run.", _UNIT),
    Family("job_last_checkpoint_complete", "gauge", "1: its last checkpoint is whole. 0: it lacks .metadata.", _UNIT),
    Family("job_world_size", "gauge", "Ranks of the job on all hosts, as torchrun has told those here.", _UNIT),
    Family("job_world_size_expected", "gauge", "Ranks of the job on all hosts, if each has as many as this.", _UNIT),
    Family("graceful_stop_seconds", "gauge", "Time that the last stop of the job took.", _UNIT),
    Family("graceful_stop_forced_total", "counter", "Stops of the job that were not over in CheckpointGrace=.", _UNIT),
)


def render_metrics(sample: Sample) -> str:
    """Renders the text format of Prometheus, version 0.0.4. A metric of which nothing is known is left out."""
    found: dict[str, Samples] = {family.name: [] for family in FAMILIES}
    _of_host(sample, found)
    for service in sample.answer["services"] if sample.answer else ():
        _of_service(service, sample, found)
    _shared(sample, found)
    return "".join(f"{line}\n" for family in FAMILIES for line in _lines(family, found[family.name]))


def _lines(family: Family, samples: Samples) -> Iterator[str]:
    if samples:
        name = f"torchpar_{family.name}"
        yield f"# HELP {name} {family.help}"
        yield f"# TYPE {name} {family.kind}"
        for labels, value in samples:
            pairs = ",".join(f'{label}="{_escape(labels[label])}"' for label in family.labels)
            yield f"{name}{'{' + pairs + '}' if pairs else ''} {value:.15g}"


def _escape(text: str) -> str:
    """Escapes a label's value; what is no letter would not reach a dashboard as it is."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain.replace("\\", r"\\").replace('"', r"\"")


def _of_host(sample: Sample, found: Mapping[str, Samples]) -> None:
    found["build_info"].append(({"version": sample.version}, 1))
    found["torchpard_up"].append(({}, sample.answer is not None))
    found["last_check_timestamp_seconds"].append(({}, sample.now))
    found["reboot_required"].append(({}, sample.reboot_required))
    if sample.clock:
        found["clock_synchronised"].append(({}, sample.clock.is_synchronised))
        found["clock_offset_seconds"].append(({}, sample.clock.offset_seconds))
        found["clock_max_error_seconds"].append(({}, sample.clock.most_error_seconds))
    if sample.applied is not None:
        found["last_apply_timestamp_seconds"].append(({}, sample.applied))
    if sample.last_apply is not None:
        found["last_apply_success"].append(({}, sample.last_apply[0]))
        found["last_apply_end_timestamp_seconds"].append(({}, sample.last_apply[1]))
    if sample.answer is None:
        return
    conf = sample.answer["conf"]
    if conf != "unknown":
        found["config_valid"].append(({}, conf != "broken"))
        found["config_applied"].append(({}, conf == "in sync"))
    if sample.answer["generation"] is not None:
        labels = {"generation": str(sample.answer["generation"]), "sha256": sample.sha256}
        found["config_info"].append((labels, 1))
    found["notices"].append(({}, len(sample.answer["notices"])))


def _of_service(service: Mapping[str, Any], sample: Sample, found: Mapping[str, Samples]) -> None:
    unit = {"unit": str(service["unit"])}
    found["config_in_sync"].append((unit, service["placed"] != "drift" and service["in_force"]))
    found["unit_in_force"].append((unit, service["in_force"]))
    if service["running_cpus"]:
        is_older = any(wrong["what"] == "outdated" for wrong in service["wrong"])
        found["restart_required"].append((unit, is_older))
    if service["torch"]:
        found["unit_info"].append(({**unit, "torch": str(service["torch"])}, 1))
    if service["threads"]:
        found["unit_ranks"].append((unit, len(service["threads"])))
    _of_ranks(unit, service, found)
    verdicts = {item["what"]: item["verdict"] for item in service["items"]}
    for name, what in (("unit_affinity_ok", "CPUs"), ("unit_memory_policy_ok", "memory policy")):
        if verdicts.get(what) in ("ok", "drift"):
            found[name].append((unit, verdicts[what] == "ok"))
    counters = sample.counters.get(unit["unit"])
    if counters:
        _of_counters(unit, counters, found)
        # A start that was refused before its unit began is no failure to systemd.
        found["unit_failed"].append((unit, "failed" in (counters.state, service["state"])))
    stop = {f"stop_{key}": value for key, value in (service.get("last_stop") or {}).items()}
    told = {**service, **(service.get("throughput") or {}), **stop}
    for name, key in _OF_JOB:
        if told.get(key) is not None:
            found[name].append((unit, told[key]))


_OF_JOB = (
    ("job_steps_total", "steps"),
    ("job_steps_per_second", "steps_per_second"),
    ("job_samples_per_second", "samples_per_second"),
    ("job_loader_wait_ratio", "loader_wait_share"),
    ("job_silent_seconds", "silent_seconds"),
    ("job_ranks", "ranks"),
    ("job_checkpoint_age_seconds", "checkpoint_age_seconds"),
    ("job_last_checkpoint_complete", "checkpoint_complete"),
    ("unit_memory_local_ratio", "memory_local_share"),
    ("job_world_size", "world_size"),
    ("job_world_size_expected", "planned_world_size"),
    ("graceful_stop_seconds", "stop_seconds"),
    ("graceful_stop_forced_total", "stop_forced"),
)

_OF_RANK = (
    ("rank_affinity_ok", "affinity_ok"),
    ("rank_memory_local_ratio", "memory_local_share"),
    ("rank_runnable_threads", "runnable_threads"),
)


def _of_ranks(unit: Mapping[str, str], service: Mapping[str, Any], found: Mapping[str, Samples]) -> None:
    for rank, threads in enumerate(service["threads"]):
        found["rank_threads"].append(({**unit, "local_rank": str(rank)}, threads))
    for state in service.get("rank_states", ()):
        labels = {**unit, "local_rank": str(state["local_rank"])}
        for name, key in _OF_RANK:
            if state[key] is not None:
                found[name].append((labels, state[key]))


def _of_counters(unit: Mapping[str, str], counters: UnitCounters, found: Mapping[str, Samples]) -> None:
    found["unit_active"].append((unit, counters.state in RUNNING))
    found["unit_restarts_total"].append((unit, counters.restarts))
    for name, value in (
        ("unit_cpu_seconds_total", counters.cpu_seconds),
        ("unit_memory_bytes", counters.memory_bytes),
        ("unit_cpu_throttled_periods_total", counters.throttled_periods),
    ):
        if value is not None:
            found[name].append((unit, value))
    for resource, seconds in counters.waited_seconds.items():
        found["unit_pressure_waiting_seconds_total"].append(({**unit, "resource": resource}, seconds))


def _shared(sample: Sample, found: Mapping[str, Samples]) -> None:
    """Counts the CPUs that running services have in common: where status tells of an overlap, and nowhere else.

    Where both ask for it by CPUs=shared, it is none.
    """
    rows = [each for each in (sample.answer["services"] if sample.answer else ()) if each["running_cpus"]]
    running = [(str(row["unit"]), bool(row["shared"]), CpuSet.parse(row["running_cpus"])) for row in rows]
    for unit, shared, cpus in running:
        others = CpuSet.union(used for name, also, used in running if name != unit and not (shared and also))
        found["unit_shared_cpus"].append(({"unit": unit}, len(cpus & others)))
