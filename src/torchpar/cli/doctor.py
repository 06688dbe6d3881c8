"""`torchpar doctor`: what on this host costs speed or breaks jobs, and how to mend it."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import click

from torchpar.cli.output import brief, echo_json
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import ExitStatus
from torchpar.doctor import CHECKS, Severity
from torchpar.host.inputs import LIVE

# The modules that hold checks; importing one registers its checks.
_MODULES = ("torchpar.doctor.blas",)

_COLOURS = {Severity.OK: "green", Severity.WARN: "yellow", Severity.FAIL: "red", Severity.UNKNOWN: "yellow"}


@click.command()
@click.option("--root", type=FilePath(), default=LIVE, help="Look at the host below DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(root: Path, as_json: bool) -> int:
    """Look for what costs speed or breaks jobs on this host, and say how to mend it.

    Exits 0 if nothing fails, 1 if something does, 3 if something cannot be told.
    """
    for module in _MODULES:
        importlib.import_module(module)
    findings = [check(root) for _, check in sorted(CHECKS.items())]
    if as_json:
        echo_json([{**dataclasses.asdict(finding), "severity": finding.severity.value} for finding in findings])
    else:
        for finding in findings:
            severity = click.style(finding.severity.value, fg=_COLOURS[finding.severity])
            click.echo(f"{severity}  {finding.check}: {brief(finding.found)}")
            click.echo(brief(f"      seen: {finding.evidence}"))
            if finding.fix:
                click.echo(brief(f"      to mend it: {finding.fix}"))
    severities = {finding.severity for finding in findings}
    if Severity.FAIL in severities:
        return ExitStatus.FAILED
    return ExitStatus.UNKNOWN if Severity.UNKNOWN in severities else ExitStatus.DONE
