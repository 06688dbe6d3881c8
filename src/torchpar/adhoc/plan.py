"""Ad-hoc jobs: what a script that nobody declared gets of this host, beside the declared services and its like.

It holds nothing, as a service that is not enabled, but unlike that it keeps away from everybody who runs at the moment.
Which services run, and which CPUs other ad-hoc jobs are on, is told to it.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchpar.conf.services import AD_HOC, Config, Kind, Service
from torchpar.conf.settings import TrainSettings
from torchpar.conf.syntax import ConfFile
from torchpar.conf.values import CpuRequest, CpuRequestKind, GpuRequest
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import ConfigError, JobSettingsError, Problem
from torchpar.contract.job import VARIABLE, parse_job_environment
from torchpar.facts.topology import HostFacts
from torchpar.placement.claims import Reason
from torchpar.placement.cores import find_usable_cores
from torchpar.placement.layout import Need, lay_out
from torchpar.placement.place import Share, place
from torchpar.plan.plan import ServicePlan, make_plan

UNIT_PREFIX = "torchpar-run-"
COMMAND = "torchpar run"

# What an ad-hoc job has whatever [Train] says: it belongs to no boot, no slot, and no other host.
_NEVER = ("Enabled=no", "Slot=", "Restart=no", "Nodes=", "Endpoint=", "Elastic=")


@dataclass(frozen=True)
class AdHocJob(Service):
    """A job of `torchpar run`: a service that no file declares. `placed` says that its CPUs were chosen for it."""

    placed: bool = False

    @property
    def names_cpus(self) -> bool:
        """Says whether it was started with a CPUs= that names CPUs, NUMA nodes or packages."""
        return super().names_cpus and not self.placed

    @property
    def unit(self) -> str:
        """The name of its transient unit."""
        return f"{UNIT_PREFIX}{self.name}.service"

    @property
    def section(self) -> str:
        """The job's name in messages."""
        return "this job" if self.name != "others" else "other ad-hoc jobs"

    @property
    def own_user(self) -> bool:
        """Says no: whichever user it runs as, its home is that user's."""
        return False

    def origin(self, key: str) -> str:
        """Returns the place that messages name: the command itself."""
        return "run"


def job_name(what: str, number: int) -> str:
    """Makes a name for the unit of a script or module; `number` tells the jobs of one script apart."""
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", what.rpartition("/")[2].removesuffix(".py")).strip("-.") or "job"
    return f"{stem[:60]}-{number}"


def conf_of(settings: Iterable[tuple[str, str]]) -> ConfFile:
    """Makes the last file of the conf of the job's settings, pairs of key and value: [Train] has its defaults.

    Raises ConfigError for a value that is more than one line.
    """
    lines = [f"[Train {AD_HOC}]", "Script=/"]
    for key, value in settings:
        if "\n" in f"{key}{value}":
            raise ConfigError([f"{COMMAND}: {key}={value!r:.60}: must be one line"])
        # The empty line ends a value that ends in a backslash.
        lines += [f"{key}={value}", ""]
    return ConfFile(COMMAND, "\n".join([*lines, *_NEVER, ""]))


def own_problems(found: Iterable[Problem | str]) -> tuple[str, ...]:
    """Returns the problems in the job's own settings, without a line number that nobody could find."""
    own = [problem.what for problem in found if isinstance(problem, Problem) and problem.place.file == COMMAND]
    return tuple(what.removeprefix(f"[Train {AD_HOC}] ") for what in own)


def take_job(
    config: Config, name: str, *, script: str | None, module: str | None, arguments: Iterable[str]
) -> tuple[Config, AdHocJob]:
    """Splits the conf into the rest without the section of conf_of(), and the job that it describes."""
    (section,) = config.find(f"train@{AD_HOC}")
    settings = section.settings
    assert isinstance(settings, TrainSettings)
    settings = dataclasses.replace(settings, script=script, module=module, arguments=tuple(arguments))
    job = AdHocJob(Kind.TRAIN, name, settings, section.directives, section.origins)
    return dataclasses.replace(config, services=tuple(s for s in config.services if s is not section)), job


def plan_job(
    config: Config,
    job: AdHocJob,
    facts: HostFacts,
    *,
    running: Collection[str],
    used: CpuSet,
    used_gpus: Collection[str] = (),
) -> ServicePlan:
    """Plans an ad-hoc job. Raises PlacementError when what it asks for is not there.

    `running` are the declared units that run, `used` the CPUs of other ad-hoc jobs and `used_gpus` their accelerators,
    by the names of the plan. It gets the CPUs that no enabled service holds and nobody else runs on. Where there are
    none it shares those that no enabled service holds, or all, with a warning; so it is with accelerators that it asks
    for, while with GPUs=auto it gets those that nobody uses, or none.
    """
    named = find_usable_cores(facts, host_cpus=config.host.cpus, reserve=config.host.reserve_cores).named
    present = [service for service in config.services if service.settings.enabled or service.unit in running]
    used = used & CpuSet.union(core.cpus for core in named)
    if used:
        others = TrainSettings(script="/", cpus=CpuRequest(CpuRequestKind.LIST, numbers=used), gpus=GpuRequest(0))
        present.append(AdHocJob(Kind.TRAIN, "others", others, (), {}))
    placement = place(dataclasses.replace(config, services=(*present, job)), facts)
    shares, usable = placement.shares, placement.usable
    gpus, gpu_warning = _choose_gpus(job, present, shares, facts, used_gpus)
    if gpus != job.settings.gpus:
        job = dataclasses.replace(job, settings=dataclasses.replace(job.settings, gpus=gpus))
        shares = place(dataclasses.replace(config, services=(*present, job)), facts).shares
    held = CpuSet.union(shares[s.unit].cpus for s in present if s.settings.enabled and not _is_shared(s))
    busy = CpuSet.union(shares[service.unit].cpus for service in present if not service.settings.enabled)
    free = [core for core in usable.pool if core.cpus.isdisjoint(held)]
    quiet = [core for core in free if core.cpus.isdisjoint(busy)]

    request, count = job.settings.cpus, job.settings.cpus.count
    reason, warning = None, None
    if request.kind in (CpuRequestKind.AUTO, CpuRequestKind.COUNT):
        if quiet and len(quiet) >= count:
            near = CpuSet(gpu.numa_node for gpu in shares[job.unit].gpus if gpu.numa_node is not None)
            train = job.settings if isinstance(job.settings, TrainSettings) else None
            ranks = train.ranks if train and isinstance(train.ranks, int) else 1
            by_node = train is not None and train.ranks == "numa"
            need = Need(count or len(quiet), near, ranks=ranks, by_node=by_node)
            (cores,) = lay_out(quiet, [need], usable.distance)
            cpus = CpuSet.union(core.cpus for core in cores)
            reason = Reason("CPUs", str(cpus), "no enabled service holds them and no other job runs on them")
            request = CpuRequest(CpuRequestKind.LIST, numbers=cpus)
        else:
            if not count:
                request = CpuRequest(CpuRequestKind.SHARED)
            names = [s.unit for s in present if not free or not s.settings.enabled]
            who = " and ".join("other ad-hoc jobs" if name.startswith(UNIT_PREFIX) else name for name in names)
            left = f"{len(quiet)} of {len(usable.pool)} cores are left" if quiet else "no core is left"
            warning = f"{left}, so this job shares CPUs with {who or 'enabled services'}; all of them will be slower"
    settings = dataclasses.replace(job.settings, cpus=request)
    job = dataclasses.replace(job, settings=settings, placed=reason is not None)
    plan = make_plan(dataclasses.replace(config, services=(*present, job)), facts).find(job.unit)
    if reason:
        plan = dataclasses.replace(
            plan, reasons=tuple(reason if old.key == "CPUs" else old for old in plan.reasons)
        )
    told = tuple(text for text in (warning, gpu_warning) if text)
    return dataclasses.replace(plan, warnings=(*told, *plan.warnings))


def _choose_gpus(
    job: AdHocJob, present: Iterable[Service], shares: Mapping[str, Share], facts: HostFacts, used: Collection[str]
) -> tuple[GpuRequest, str | None]:
    """GPUs= of the job without those that others compute on at the moment, and a warning where that cannot be."""
    request = job.settings.gpus
    held = {gpu.name for service in present if service.settings.enabled for gpu in shares[service.unit].gpus}
    busy = {gpu.name for service in present if not service.settings.enabled for gpu in shares[service.unit].gpus}
    busy = (busy | set(used)) - held
    taken = [gpu.name for gpu in shares[job.unit].gpus if gpu.name in busy]
    if not taken:
        return request, None
    quiet = [gpu for gpu in facts.discrete_accelerators() if gpu.name not in held | busy]
    if request.count is None:
        # As for a service: whole GPUs or one MIG instance, as CUDA shows a process no more.
        names = tuple(gpu.name for gpu in quiet if gpu.mig is None) or tuple(gpu.name for gpu in quiet[:1])
        if names:
            return GpuRequest(len(names), names), None
        return GpuRequest(0), f"no accelerator is left: other jobs compute on {' '.join(taken)}; --gpus 1 shares one"
    if not request.names and len(quiet) >= request.count:
        # Of one node as far as that can be: those of the node with the most of them first.
        nodes = Counter(gpu.numa_node for gpu in quiet)
        quiet.sort(key=lambda gpu: (gpu.mig is not None, -nodes[gpu.numa_node], gpu.pci))
        names = tuple(gpu.name for gpu in quiet[: request.count])
        return GpuRequest(len(names), names), None
    return request, f"this job shares accelerators with other jobs: {' '.join(taken)}; all of them will be slower"


def used_by(properties: Mapping[str, Any]) -> tuple[CpuSet, frozenset[str]]:
    """Returns the CPUs and accelerators that the unit of an ad-hoc job uses, by its D-Bus properties."""
    cpus = CpuSet.from_bitmap(properties.get("AllowedCPUs", ()))
    cpus = cpus or CpuSet.from_bitmap(properties.get("CPUAffinity", ()))
    variables = dict(variable.partition("=")[::2] for variable in properties.get("Environment", ()))
    return cpus, accelerators_of(variables.get(VARIABLE, ""))


def accelerators_of(told: str) -> frozenset[str]:
    """Parses the accelerators that a job's variable names; none where it is not what torchpar writes."""
    try:
        job = parse_job_environment({VARIABLE: told}) if told else None
    except JobSettingsError:
        return frozenset()
    return frozenset(gpu for rank in job.ranks for gpu in rank.gpus) if job else frozenset()


def _is_shared(service: Service) -> bool:
    return service.settings.cpus.kind is CpuRequestKind.SHARED


# What belongs to the process that asks: systemd's own notes to a service, and the traces of sudo.
_NOT_INHERITED = re.compile(
    r"INVOCATION_ID|JOURNAL_STREAM|NOTIFY_SOCKET|LISTEN_\w+|WATCHDOG_\w+|MAINPID|MANAGERPID|SYSTEMD_EXEC_PID"
    r"|MEMORY_PRESSURE_\w+|SUDO_\w+|_|PWD|OLDPWD|SHLVL"
)
_OF_THE_USER = re.compile(r"HOME|USER|LOGNAME|SHELL|MAIL|XDG_\w+|DBUS_\w+|SSH_\w+")


def inherited(environ: Mapping[str, str], planned: Mapping[str, str], *, same_user: bool) -> dict[str, str]:
    """Returns the variables that a job inherits: all but the caller's own state and the planned ones."""
    return {
        name: value
        for name, value in environ.items()
        if name not in planned
        and not _NOT_INHERITED.fullmatch(name)
        and (same_user or not _OF_THE_USER.fullmatch(name))
    }


def replaced(environ: Mapping[str, str], planned: Mapping[str, str]) -> tuple[str, ...]:
    """Returns a line for each variable that the caller has set and the plan sets otherwise."""
    return tuple(
        f"{name}={environ[name]} in the environment is replaced by {value}; "
        f"to keep it: --set Environment={name}={environ[name]}"
        for name, value in planned.items()
        if environ.get(name, value) != value and name != "TORCHPAR_JOB"
    )
