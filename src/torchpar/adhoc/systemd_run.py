"""A plan as a transient unit: the command line of systemd-run(1) that starts an ad-hoc job as a drop-in would place it.

Placement, limits, user and the way it is stopped are those of a declared service. The sandbox of
torchpar-train@.service is not: what is started from a shell reads and writes where that shell does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torchpar.conf.passed import expanded
from torchpar.contract.paths import JOBS, STOP
from torchpar.plan.plan import ServicePlan
from torchpar.units.drop_ins import AFTER_GRACE, placement_settings

# As in torchpar-train@.service, and why there.
_ALWAYS = (
    ("OOMPolicy", "stop"),
    ("LimitMEMLOCK", "infinity"),
    ("LimitNOFILE", "1048576"),
    ("TasksMax", "infinity"),
)


def make_command(plan: ServicePlan, *, unit: str, user: str, directory: str, environment_file: str) -> tuple[str, ...]:
    """Makes the systemd-run command that starts the job, streams what it prints and waits for its end.

    The caller's own environment is in a file: a unit's properties can be read by everybody.
    """
    settings = plan.service.settings
    return (
        "systemd-run",
        "--quiet",
        "--no-ask-password",
        "--wait",
        "--pipe",
        "--service-type=exec",
        f"--unit={unit}",
        f"--description={plan.service.name}, started by a person with torchpar",
        "--slice=torchpar.slice",
        f"--uid={user}",
        *([f"--gid={settings.group}"] if settings.group else []),
        f"--working-directory={settings.working_directory or directory}",
        f"--property=SyslogIdentifier={unit.removesuffix('.service')}",
        # Where stop_requested() says that the script asks, and stop looks.
        f"--property=RuntimeDirectory={JOBS.removeprefix('/run/')}/{unit.removesuffix('.service')}",
        *(f"--property={key}={value}" for key, value in _properties(plan)),
        # It is gone when the job runs, and for ExecStop= it would be read again.
        f"--property=EnvironmentFile=-{environment_file}",
        *(f"--setenv={name}={value}" for name, value in plan.environment.items()),
        "--",
        # systemd replaces variables in a unit's command line; `$$` is a plain `$` (systemd.service(5)).
        *(word.replace("$", "$$") for word in plan.command),
    )


def _properties(plan: ServicePlan) -> Iterator[tuple[str, str]]:
    yield from _ALWAYS
    # Empty ones reset what a unit file said, and here is none.
    yield from ((key, value) for key, value in placement_settings(plan) if value)
    yield from plan.service.settings.limits().items()
    train = plan.service.train()
    if train:
        yield "ExecStop", f":{STOP} {train.checkpoint_grace}"
        yield "TimeoutStopSec", f"{train.checkpoint_grace + AFTER_GRACE}s"
    yield from ((key, expanded(key, value, plan.unit)) for key, value in plan.service.directives)


def environment_file(variables: Mapping[str, str]) -> str:
    """Makes the text of an EnvironmentFile= without what systemd would refuse (control characters, odd names)."""
    lines = []
    for name, value in variables.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            continue
        # What is not UTF-8 has surrogates here, and systemd would skip the whole file for it.
        if any((ord(c) < 32 and c not in "\t\n") or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in value):
            continue
        quoted = re.sub(r'([\\"`$])', r"\\\1", value)
        lines.append(f'{name}="{quoted}"\n')
    return "".join(lines)
