"""Lets systemd's own parser read units before they are in force, and names the conf's line that it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torchpar.errors import ConfigError, SystemdError
from torchpar.host import systemd
from torchpar.plan import Plan, ServicePlan
from torchpar.units import socket_of, unit_of

# The package's template units, without which a drop-in belongs to nothing.
_TEMPLATE = Path("/usr/lib/systemd/system/torchpar-train@.service")

# The key of the conf behind a directive that torchpar renders, where it has another name.
_KEYS = {
    "ExecStart": "Script",
    "ExecReload": "Python",
    "TimeoutStopSec": "CheckpointGrace",
    "LoadCredential": "TLSKey",
    "ListenStream": "Listen",
}


def can_check() -> bool:
    """Whether this host has what reads units: systemd, and the package's own."""
    return systemd.is_running() and _TEMPLATE.exists()


def check_units(plan: Plan, files: Mapping[str, str]) -> tuple[str, ...]:
    """Have the drop-ins read, whose paths are those of a UnitSet; returns warnings.

    Raises ConfigError where all that systemd says is of values of the conf, and else SystemdError with what it says.
    """
    # A program that is not there yet keeps nothing else from being put in force.
    programs: list[str] = []
    said: list[str] = []
    for line in systemd.verify_units(files):
        (programs if "is not executable" in line else said).append(line)
    if not said:
        return tuple(warning for line in programs if (warning := missing_program(line, plan)))
    told = [in_conf(line, plan, files) for line in said]
    problems = [problem for problem in told if problem]
    if len(problems) == len(told):
        # A default of all services is wrong in each of them, and is one line.
        raise ConfigError(list({_place_and_words(problem): problem for problem in reversed(problems)}.values())[::-1])
    lines = dict.fromkeys(problem or line for problem, line in zip(told, said, strict=True))
    raise SystemdError("\n".join(("systemd does not accept the rendered units; nothing has changed:", *lines)))


def in_conf(said: str, plan: Plan, files: Mapping[str, str]) -> str | None:
    """What systemd says of a line of a drop-in, said of the conf's line that it was made from; None of any other."""
    match = re.match(r"([^:]+):(\d+): (.*)", said, re.DOTALL)
    lines = files.get(match[1], "").split("\n") if match else []
    service = _service(match[1], plan.services) if match else None
    if not match or not service or int(match[2]) > len(lines):
        return None
    directive, _, value = lines[int(match[2]) - 1].partition("=")
    passed = (directive, value) in service.service.directives
    key = f"Service.{directive}" if passed else _KEYS.get(directive, directive)
    origin = service.service.origins.get(f"{key}={value}") or service.service.origin(key)
    return f"{origin}: {service.service.section} {key}={value:.60}: systemd says: {match[3]:.300}"


def _place_and_words(problem: str) -> tuple[str, str]:
    return problem.partition(": ")[0], problem.partition(": systemd says: ")[2]


def missing_program(said: str, plan: Plan) -> str | None:
    """What systemd says of a program that it cannot run, said of the Service.Exec...= that names it.

    None of any other: an interpreter is found by access, and the package's own programs are there.
    """
    match = re.match(r"([^:]+): Command (.+) is not executable: (.*)", said)
    service = next((service for service in plan.services if match and service.unit == match[1]), None)
    if not match or not service:
        return None
    for directive, value in service.service.directives:
        if directive.startswith("Exec") and value.lstrip("@-:+!|").split()[:1] == [match[2]]:
            where = service.service.origins.get(f"Service.{directive}={value}") or service.service.origin("")
            return f"{where}: {service.service.section} Service.{directive}={value:.60}: {match[2]}: {match[3]}"
    return None


def _service(path: str, services: Iterable[ServicePlan]) -> ServicePlan | None:
    unit = unit_of(path)
    return next((service for service in services if unit in (service.unit, socket_of(service.unit))), None)
