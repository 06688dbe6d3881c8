"""Prints what the commands on a fleet have in common: findings, and hosts as JSON."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from torchpar.cli.fleet_hosts import Fleet
from torchpar.cli.output import echo_block, to_json
from torchpar.contract.errors import ExitStatus
from torchpar.fleet.findings import Overview
from torchpar.fleet.host import HostPlan


def echo_findings(overview: Overview, *, fits: bool = False) -> None:
    """Prints the findings, the worst first, and with `fits` how jobs of several hosts fit."""
    for finding in overview.findings:
        is_error = finding.status is not ExitStatus.DONE
        echo_block("", [f"{'' if is_error else 'warning: '}{finding}"], mark=is_error)
    for fit in overview.fits:
        for problem in fit.problems:
            echo_block("", [f"{fit.service}: {problem}"], mark=True)
        if fits and not fit.problems:
            echo_block("", [f"{fit.service}: {fit.sentence}"])


def echo_fleet_json(fleet: Fleet, status: ExitStatus) -> None:
    """Prints the whole fleet as JSON, a line for each host, one after the other."""
    overview = fleet.overview
    findings = [{"what": each.what, "hosts": each.hosts, "exit_status": each.status} for each in overview.findings]
    jobs = [{"service": each.service, "hosts": each.hosts, "problems": each.problems} for each in overview.fits]
    readable = getattr(sys.stdout, "encoding", "").lower() == "utf-8"

    def line(data: Any) -> str:
        return to_json(data, ensure_ascii=not readable, indent=None)

    click.echo(f'{{"version": 1, "exit_status": {status:d},')
    click.echo(f'"findings": {line(findings)},')
    click.echo(f'"jobs": {line(jobs)},')
    click.echo('"hosts": [', nl=False)
    for number, host in enumerate(fleet):
        click.echo(f"{',' if number else ''}\n{line(host_json(host))}", nl=False)
    click.echo("\n]}")


def host_json(host: HostPlan) -> dict[str, Any]:
    """Returns a host as JSON data."""
    about = dataclasses.asdict(host.summary)
    # The numbers are those of the lists, and the rest is said in the findings and jobs.
    for name in ("services", "changed", "restarts", "matched", "parts", "listening"):
        del about[name]
    about["exit_status"] = about.pop("status")
    changes = [
        {"name": row.unit, "change": row.change, "meaning": row.meaning, "restart_required": row.restart}
        for row in host.changes
    ]
    return {**about, "services": [dataclasses.asdict(row) for row in host.services], "changes": changes}
