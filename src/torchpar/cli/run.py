"""`torchpar run`: one script now, with this host's placement, as a transient unit or directly in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shutil
from typing import NoReturn

import click

from torchpar.adhoc.allocation import (
    Allocation,
    allocate,
    command_of,
    environment_of,
    plan_allocated,
)
from torchpar.adhoc.plan import (
    AdHocJob,
    conf_of,
    inherited,
    job_name,
    own_problems,
    plan_job,
    replaced,
    take_job,
)
from torchpar.adhoc.running import read_ad_hoc_jobs
from torchpar.adhoc.start import as_unit, become_task, make_startable, start
from torchpar.cli.output import warn
from torchpar.conf.services import AD_HOC
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, NotPermittedError
from torchpar.contract.paths import RUN
from torchpar.facts.slurm import SlurmTask, parse_task
from torchpar.facts.topology import HostFacts
from torchpar.generations.enforce import read_active
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.ancestors import is_below_others_alone
from torchpar.host.conf import ConfReader
from torchpar.host.inputs import load, load_facts
from torchpar.host.own_limits import narrow, read_own
from torchpar.host.turns import in_turn
from torchpar.plan.inputs import Inputs
from torchpar.plan.opened import find_refused
from torchpar.plan.plan import ServicePlan

# Long enough for another `torchpar run` to choose its CPUs and have systemd start the job.
TURN_SECONDS = 10

# Keys that have an option or argument of their own, and those that concern boot, turns and other hosts.
NOT_FOR_A_JOB = ("Script", "Module", "Arguments", "User", "Enabled", "Slot", "Restart", "Nodes", "Endpoint", "Elastic")


@click.command(
    context_settings={"allow_interspersed_args": False}, short_help="Run a script now, placed as a service would be."
)
@click.option("-m", "as_module", is_flag=True, help="Run a module, as python -m does.")
@click.option("--cpus", metavar="CPUS", help="As CPUs= in torchpar.conf(5); a number counts cores.")
@click.option("--gpus", metavar="GPUS", help="As GPUs=.")
@click.option("--ranks", metavar="RANKS", help="As Ranks=.")
@click.option("--python", metavar="PROGRAM", help="As Python=; by default the active virtual environment's.")
@click.option("--user", metavar="USER", help="Who it runs as; by default you, also with sudo.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other key of [Train NAME].")
@click.argument("what", metavar="SCRIPT", type=click.Path())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(  # noqa: PLR0913 - click gives every option as an argument
    as_module: bool,
    cpus: str | None,
    gpus: str | None,
    ranks: str | None,
    python: str | None,
    user: str | None,
    settings: tuple[str, ...],
    what: str,
    arguments: tuple[str, ...],
) -> int:
    """Run SCRIPT (or, with -m, a module) with its arguments on CPUs that nobody else uses.

    What [Train] of the conf says holds for it too. Its exit status is that of the script.
    """
    if not as_module and not os.path.exists(what):
        raise click.UsageError(f"{what}: no such file")
    task = parse_task(os.environ)
    options = {"CPUs": cpus, "GPUs": gpus, "Ranks": ranks, "Python": _interpreter(python)}
    pairs = [(key, value) for key, value in options.items() if value is not None]
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key in NOT_FOR_A_JOB:
            raise click.UsageError(f"--set {setting}: is not KEY=VALUE with a key that an ad-hoc job can have")
        pairs.append((key, value))
    if task:
        return _run_in_slurm(task, pairs, what, arguments, as_module=as_module, user=user)
    with contextlib.ExitStack() as choosing:
        if not choosing.enter_context(in_turn(RUN, TURN_SECONDS)):
            warn([f"{RUN} is locked for long; another job that starts at this moment may get the same CPUs"])
        inputs = _read(conf_of([("WorkingDirectory", ""), *pairs]))
        script, module = (None, what) if as_module else (what, None)
        config, job = take_job(
            inputs.config, job_name(what, os.getpid()), script=script, module=module, arguments=arguments
        )
        if as_unit():
            job = _make_startable(job, inputs.facts.systemd_version)
        if not systemd.is_running():
            # Declared services cannot run here: those of a conf in a container's image hold nothing, and need not fit.
            config = dataclasses.replace(config, services=())
        user = _user(user, job)
        running = systemd.running_services() if systemd.is_running() else ()
        used, used_gpus = read_ad_hoc_jobs()
        own = _own_part(inputs.facts)
        plan = plan_job(config, job, inputs.facts, running=running, used=used, used_gpus=used_gpus, own=own)
        name = pwd.getpwuid(os.geteuid()).pw_name
        environment = inherited(os.environ, plan.environment, same_user=user == name)
        warn((*plan.warnings, *replaced(os.environ, plan.environment)))
        unit = f"unit {plan.unit}" if as_unit() else "no unit of its own"
        _echo_plan(plan, user if user != name else "", unit)
        # Once the job is there others see its CPUs.
        return start(plan, unit=plan.unit, user=user, environment=environment, warn=warn, started=choosing.close)


def _run_in_slurm(  # noqa: PLR0913 - what the command was given
    task: SlurmTask,
    pairs: list[tuple[str, str]],
    what: str,
    arguments: tuple[str, ...],
    *,
    as_module: bool,
    user: str | None,
) -> NoReturn:
    """Becomes the job in the allocation that this process is a task of. Raises SchedulerError and PlacementError."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    if user not in (None, name):
        raise click.UsageError(f"--user {user}: the job is Slurm's, which has started it as {name}")
    if systemd.is_running() and is_below_others_alone("slurmstepd", os.getpid()):
        warn(
            [
                f"SLURM_JOB_ID={task.job} is set, but no slurmstepd runs this: a terminal begun in a job keeps "
                "its variables; to run outside of the allocation: env -u SLURM_JOB_ID torchpar run ..."
            ]
        )
    own = read_own()

    def allocated(facts: HostFacts) -> Allocation:
        return allocate(task, narrow(facts, own, slice_counts=False), os.environ)

    allocation = allocated(load_facts())
    if allocation.has_a_task_for_each_rank and any(key == "Ranks" for key, _ in pairs):
        raise click.UsageError(
            f"--ranks: srun has started {task.local_world_size} tasks on this host, and each is a rank; "
            "with --ntasks-per-node=1 one of them starts all ranks of a host"
        )
    inputs = _read(conf_of([("WorkingDirectory", ""), *allocation.settings(), *pairs]))
    script, module = (None, what) if as_module else (what, None)
    name_of_all = job_name(what, task.name)
    config, job = take_job(inputs.config, name_of_all, script=script, module=module, arguments=arguments)
    # With the facts of the job's interpreter.
    allocation = allocated(inputs.facts)
    running = systemd.running_services() if systemd.is_running() else ()
    plan = plan_allocated(config, job, allocation, running=running)
    planned = environment_of(plan, allocation)
    ours = {name: value for name, value in planned.items() if name in plan.environment}
    warn((*allocation.warnings(), *plan.warnings, *replaced(os.environ, ours)))
    _echo_plan(plan, "", f"Slurm step {task.name}, task {task.rank} of {task.world_size}")
    environment = {**inherited(os.environ, planned, same_user=True), **planned}
    become_task(plan, command_of(plan, allocation), environment, warn)


def _interpreter(python: str | None) -> str | None:
    """Returns the path of the interpreter: the one asked for, the active virtual environment's, or the conf's."""
    if python is None:
        active = os.path.join(os.environ.get("VIRTUAL_ENV", ""), "bin/python3")
        return active if os.path.isabs(active) and os.path.exists(active) else None
    found = shutil.which(python)
    if found is None:
        raise click.UsageError(f"--python {python}: no such program")
    return os.path.abspath(found)


def _read(own: ConfFile) -> Inputs:
    """Reads the conf in force (that on the disk where nothing has been applied), with the job's settings at its end.

    Raises ConfigError with what is wrong in the job's settings.
    """
    active = read_active(Store())
    files = active[1].conf if active else ConfReader().read(trusted=True)
    try:
        inputs = load(files=(*files, own))
    except ConfigError as error:
        raise ConfigError(own_problems(error.found) or error.found) from None
    refused = find_refused(inputs.config)
    for service in inputs.config.find(f"train@{AD_HOC}"):
        if service.unit in refused:
            raise ConfigError(refused[service.unit])
    warn(own_problems(inputs.config.notes))
    # What is odd in the conf concerns its services, and `torchpar plan` says it.
    return dataclasses.replace(inputs, config=dataclasses.replace(inputs.config, notes=()))


def _own_part(facts: HostFacts) -> HostFacts | None:
    """Returns the part of the host that the job is kept to with this process; None where it is all, or has a unit.

    Whoever runs this by taskset, or in a container with a set of CPUs, means the job.
    """
    own = None if as_unit() else narrow(facts, read_own(), slice_counts=True)
    return None if own == facts else own


def _make_startable(job: AdHocJob, systemd_version: int | None) -> AdHocJob:
    try:
        return make_startable(job, systemd_version, warn)
    except ConfigError as error:
        raise ConfigError(own_problems(error.found) or error.found) from None


def _user(asked: str | None, job: AdHocJob) -> str:
    """Returns the user that the job runs as: the one asked for; for root also [Train] User=, or the caller of sudo."""
    user = asked
    if user is None and os.geteuid() == 0:
        user = job.settings.user or os.environ.get("SUDO_USER")
    if user is None:
        return pwd.getpwuid(os.geteuid()).pw_name
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise click.UsageError(f"there is no user {user} on this host") from None
    if os.geteuid() != 0 and user != pwd.getpwuid(os.geteuid()).pw_name:
        raise NotPermittedError(f"to run as {user} this needs root; try: sudo torchpar run --user {user}")
    return user


def _echo_plan(plan: ServicePlan, user: str, where: str) -> None:
    threads = "+".join(str(rank.threads) for rank in plan.ranks)
    parts = [f"CPUs {plan.cpus}" + ("" if plan.own else " (shared)"), f"threads {threads}"]
    parts += [f"memory {plan.memory.policy.value} {plan.memory.nodes}".rstrip(), f"malloc {plan.allocator}"]
    if plan.gpus:
        parts.append("GPUs " + " ".join(gpu.pci for gpu in plan.gpus))
    if user:
        parts.append(f"user {user}")
    parts.append(where)
    click.echo(f"torchpar: {', '.join(parts)}", err=True)
