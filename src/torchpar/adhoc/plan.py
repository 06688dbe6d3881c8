"""Ad-hoc jobs: what a script that nobody declared gets of this host, beside the declared services and its like.

It holds nothing, as a service that is not enabled, but unlike that it keeps away from everybody who runs at the moment.
Which services run, and which CPUs other ad-hoc jobs are on, is told to it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchpar.conf.services import AD_HOC, Config, Kind, Service
from torchpar.conf.settings import TrainSettings
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import ConfigError, JobSettingsError, Problem
from torchpar.contract.job import VARIABLE, job_environment, parse_job_environment
from torchpar.facts.topology import Held, HostFacts
from torchpar.placement.place import place
from torchpar.plan.plan import ServicePlan, make_plan

UNIT_PREFIX = "torchpar-run-"
COMMAND = "torchpar run"

# What an ad-hoc job has whatever [Train] says: it belongs to no boot, no slot, and no other host.
_NEVER = ("Enabled=no", "Slot=", "Restart=no", "Nodes=", "Endpoint=", "Elastic=")

# The keys that the command has an option for.
_OPTIONS = ("CPUs", "GPUs", "Ranks", "Python", "User")


@dataclass(frozen=True)
class AdHocJob(Service):
    """A job of `torchpar run`: a service that no file declares."""

    @property
    def unit(self) -> str:
        """The name of its transient unit."""
        return f"{UNIT_PREFIX}{self.name}.service"

    @property
    def section(self) -> str:
        """The job's name in messages."""
        return "this job"

    @property
    def own_user(self) -> bool:
        """Says no: whichever user it runs as, its home is that user's."""
        return False

    def origin(self, key: str) -> str:
        """Returns the place that messages name: the command itself."""
        return "run"

    def ask(self, key: str, value: object) -> str:
        """Returns the option of the command that asks for a value."""
        return f"--{key.lower()} {value}" if key in _OPTIONS else f"--set {key}={value}"


def job_name(what: str, number: int | str) -> str:
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
    own: HostFacts | None = None,
) -> ServicePlan:
    """Plans an ad-hoc job. Raises PlacementError when what it asks for is not there.

    `own` is the part of the host that it may use at all, where it has no unit and stays where the command runs; then
    the declared services have their CPUs of the whole host, and it keeps away from them within its own part.
    `running` are the declared units that run, `used` the CPUs of other ad-hoc jobs and `used_gpus` their accelerators,
    by the names of the plan. It gets the CPUs that no enabled service holds and nobody else runs on, slower ones where
    no faster are left. Where there are none it shares those that no enabled service holds, or all, with a warning; so
    it is with accelerators that it asks for, while with GPUs=auto it gets those that nobody uses, or none.
    """
    slots = {service.settings.slot for service in config.services if service.settings.enabled} - {None}
    holding = [s for s in config.services if s.settings.enabled or s.settings.slot in slots]
    passing = [s for s in config.services if s not in holding and s.unit in running]
    shares = place(dataclasses.replace(config, services=(*holding, *passing)), facts).shares
    if own is not None:
        holding, passing = [], [*holding, *passing]
    taken = {s.unit: Held(shares[s.unit].cpus, tuple(gpu.name for gpu in shares[s.unit].gpus)) for s in passing}
    taken["other ad-hoc jobs"] = Held(used, tuple(used_gpus))
    config = dataclasses.replace(config, services=(*holding, job))
    return make_plan(config, own or facts, taken=taken).find(job.unit)


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


def tell(environment: Mapping[str, str], **changes: Any) -> dict[str, str]:
    """Returns a plan's variables with other fields of the JobSettings that they carry."""
    job = parse_job_environment(environment)
    assert job is not None
    return {**environment, **job_environment(dataclasses.replace(job, **changes))}


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
