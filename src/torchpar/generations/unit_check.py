"""Lets systemd's own parser read units before they are in force, and names the conf's line that it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torchpar.contract.errors import ConfigError, Place, Problem, SystemdError, printable
from torchpar.host import analyze, systemd
from torchpar.plan.plan import Plan, ServicePlan
from torchpar.units.drop_ins import socket_of, unit_of

# The package's template units, without which a drop-in belongs to nothing.
_TEMPLATE = systemd.PACKAGED / "torchpar-train@.service"

# The key of the conf behind a directive that torchpar renders, where it has another name.
_KEYS = {
    "ExecStart": "Script",
    "ExecReload": "Python",
    "TimeoutStopSec": "CheckpointGrace",
    "LoadCredential": "TLSKey",
    "ListenStream": "Listen",
}

# What systemd says of a unit after it has said why.
_BAD = "has a bad unit file setting."


def can_check() -> bool:
    """Says whether this host has systemd and the package's template unit, without which no unit can be read."""
    return systemd.is_running() and _TEMPLATE.exists()


def check_units(plan: Plan, files: Mapping[str, str]) -> tuple[str, ...]:
    """Has the drop-ins read, whose paths are those of a UnitSet; returns warnings.

    Raises ConfigError where all that is wrong with them is in values of the conf, and else SystemdError with what
    systemd says.
    """
    errors: list[Problem | str] = []
    warnings: list[Problem | str] = []
    for line in analyze.verify_units(files):
        if "is not executable" in line:
            # An interpreter that is not there is told by access, and the package's own programs are there.
            continue
        if line.endswith(" is masked."):
            # An administrator wants that it does not start; it is no reason to put nothing in force.
            warnings.append(printable(line))
            continue
        if problem := in_conf(line, plan, files) or of_whole_unit(line, plan):
            errors.append(problem)
        else:
            (errors if _is_of_ours(line, plan) else warnings).append(printable(line))
    problems = [error for error in errors if isinstance(error, Problem)]
    # What comes of a problem is no other one.
    named = {f"Unit {service.unit} {_BAD}" for service in plan.services for it in problems if _is_of(it, service)}
    errors = [error for error in errors if error not in named]
    if len(problems) < len(errors):
        lines = dict.fromkeys(map(str, errors))
        raise SystemdError("\n".join(("systemd does not accept the rendered units; nothing has changed:", *lines)))
    if problems:
        # A default of all services is wrong in each of them, and is one line.
        once: dict[tuple[Place, str], Problem] = {}
        for problem in problems:
            once.setdefault((problem.place, problem.what.partition(": systemd says: ")[2]), problem)
        raise ConfigError(list(once.values()))
    return tuple(dict.fromkeys(map(str, warnings)))


def in_conf(said: str, plan: Plan, files: Mapping[str, str]) -> Problem | None:
    """Turns systemd's message on a line of a drop-in into one on its line of the conf; None for any other message."""
    match = re.match(r"(.+?\.conf):(\d+): (.*)", said, re.DOTALL)
    lines = files.get(match[1], "").split("\n") if match else []
    service = _service(match[1], plan.services) if match else None
    if not match or not service or int(match[2]) > len(lines):
        return None
    directive, _, value = lines[int(match[2]) - 1].partition("=")
    passed = (directive, value) in service.service.directives
    key = f"Service.{directive}" if passed else _KEYS.get(directive, directive)
    return _problem(service, key, value, f"systemd says: {printable(match[3], 300)}")


def of_whole_unit(said: str, plan: Plan) -> Problem | None:
    """Turns systemd's message on a whole unit into one on the conf's line with the directive that it names."""
    unit, _, what = said.partition(": ")
    service = next((service.service for service in plan.services if service.unit == unit), None)
    if service:
        for directive in re.findall(r"\b([A-Z][A-Za-z]+)=", what):
            for key in (f"Service.{directive}", _KEYS.get(directive, directive)):
                if key in service.origins:
                    return service.problem(key, f"{key}=: systemd says: {printable(what, 300)}")
    return None


def _is_of(problem: Problem, service: ServicePlan) -> bool:
    return problem.what.startswith(f"{service.service.section} ")


def _problem(service: ServicePlan, key: str, value: str, what: str) -> Problem:
    declared = service.service
    # Of several lines with one key, the one with this value.
    line = f"{key}={value}"
    return declared.problem(line if line in declared.origins else key, f"{key}={printable(value, 60)}: {what}")


def _is_of_ours(said: str, plan: Plan) -> bool:
    """Says whether systemd speaks of a unit that the plan renders.

    A file that is not rendered is somebody else's, also where it belongs to such a unit: a mount that a service waits
    for, what `systemctl edit` wrote. What that keeps from starting has a line of its own.
    """
    if re.match(r"/.*:\d+: ", said):
        return False
    return any(unit in said for service in plan.services for unit in (service.unit, socket_of(service.unit)))


def _service(path: str, services: Iterable[ServicePlan]) -> ServicePlan | None:
    unit = unit_of(path)
    return next((service for service in services if unit in (service.unit, socket_of(service.unit))), None)
