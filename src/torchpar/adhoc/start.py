"""Starts what is planned from a terminal and stays until it ends: as a transient unit, or by becoming it."""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn, TypeVar

from torchpar.adhoc import systemd_run
from torchpar.adhoc.plan import tell
from torchpar.conf.services import Service
from torchpar.contract.preload import preloaded
from torchpar.host import direct, systemd
from torchpar.host.inputs import refuse_foreign_files
from torchpar.host.transient import private_file, run_transient
from torchpar.plan.plan import ServicePlan

# What a malloc that does not fit ends a process with. A launcher of several ranks exits with 128 and the number, too.
FATAL = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


def as_unit() -> bool:
    """Says whether a job gets a unit of its own: systemd gives root one, but where Slurm has made a step for it."""
    return systemd.is_running() and os.geteuid() == 0 and "SLURM_JOB_ID" not in os.environ


S = TypeVar("S", bound=Service)


def make_startable(service: S, systemd_version: int | None, warn: Callable[[Iterable[str]], None]) -> S:
    """Returns a job for a transient unit, without the directives that this systemd lacks.

    Raises ConfigError where others can change a file that systemd opens for it as root: no guard looks at these, as at
    a service's.
    """
    warn(service.left_out(systemd_version))
    known = service.known_to(systemd_version)
    refuse_foreign_files(known)
    return known


def start(
    plan: ServicePlan,
    *,
    unit: str,
    user: str,
    environment: Mapping[str, str],
    warn: Callable[[Iterable[str]], None],
    started: Callable[[], None] = lambda: None,
) -> int:
    """Starts a plan's command and returns its exit status, or becomes it. `started` is called when the unit runs."""
    if not as_unit():
        warn(tuple(_confine(plan)))
        _become(plan, user, environment)
    path = f"/run/{unit.removesuffix('.service')}.env"
    with private_file(path, systemd_run.environment_file(environment)) as remove:

        def runs() -> None:
            # systemd has read the file.
            remove()
            started()

        argv = systemd_run.make_command(plan, unit=unit, user=user, directory=os.getcwd(), environment_file=path)
        status, note = run_transient(unit, argv, runs)
    if note:
        warn([note])
    library = preloaded(plan.environment)
    if library and status - 128 in FATAL:
        warn([f"{library} was preloaded, which may be why; to run without it: --set Allocator=glibc"])
    return status


def become_task(
    plan: ServicePlan, command: Sequence[str], environment: Mapping[str, str], warn: Callable[[Iterable[str]], None]
) -> NoReturn:
    """Becomes the job in a scheduler's allocation, as the user who has started it."""
    warn(tuple(filter(None, _bind(plan))))
    if missing := tuple(_beyond(plan)):
        warn([f"the job is Slurm's, so it has no unit, and this is not set: {' '.join(missing)}"])
    directory = plan.service.settings.working_directory or os.getcwd()
    user = pwd.getpwuid(os.geteuid()).pw_name
    direct.become(command, environment, user=user, group=None, directory=directory)


def _bind(plan: ServicePlan) -> list[str]:
    policy = direct.set_memory_policy(plan.memory.policy.value, plan.memory.nodes)
    return [direct.set_cpus(plan.cpus), policy]


def _confine(plan: ServicePlan) -> Iterator[str]:
    """Gives this process the CPUs and memory of the plan; yields what to warn of."""
    notes = _bind(plan)
    missing = tuple(_beyond(plan))
    why = "no root" if systemd.is_running() else "no systemd here"
    if missing:
        notes.append(f"{why}, so the job has no unit, and this is not set: {' '.join(missing)}")
    if systemd.is_running():
        notes.append("without root nothing keeps others off these CPUs; sudo torchpar run gives the job its own unit")
    yield from filter(None, notes)


def _become(plan: ServicePlan, user: str, environment: Mapping[str, str]) -> NoReturn:
    settings = plan.service.settings
    direct.become(
        plan.command,
        # No unit, no ExecStop=.
        {**environment, **tell(plan.environment, signals="main")},
        user=user,
        group=settings.group if os.geteuid() == 0 else None,
        directory=settings.working_directory or os.getcwd(),
    )


def _beyond(plan: ServicePlan) -> Iterator[str]:
    """Yields the settings of the job that only a unit can have."""
    for key, value in plan.service.settings.limits().items():
        yield f"{key}={value}"
    for key, value in plan.service.directives:
        yield f"Service.{key}={value}"
