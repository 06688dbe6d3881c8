"""`torchpar fleet check`: whether the conf fits every host, and the parts of jobs of several hosts each other."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.fleet_hosts import fleet_options, plan_fleet
from torchpar.cli.fleet_output import echo_findings, echo_fleet_json
from torchpar.cli.output import count
from torchpar.contract.errors import ExitStatus


@click.command(short_help="Say whether the conf fits every host.")
@fleet_options
def check(folder: Path, conf: Path | None, as_json: bool) -> int:
    """Say whether the conf fits every host, and whether the parts of jobs with Nodes= fit together.

    Exits 78 if the conf is wrong for a host, 1 if parts do not fit, 3 if not all facts are there, 2 if all is well and
    a host has something else in force, and 0 if not.
    """
    fleet = plan_fleet(folder, conf)
    changed = sum(1 for each in fleet.summaries if each.changed)
    status = fleet.overview.status(differs=bool(changed), fit=True)
    if as_json:
        echo_fleet_json(fleet, status)
        return status
    echo_findings(fleet.overview, fits=True)
    known = sum(1 for each in fleet.summaries if each.name and not each.errors)
    fits = "the conf fits" if status in (ExitStatus.DONE, ExitStatus.DIFFERS) else "looked at"
    click.echo(f"{fits} {count(known, 'host')}: in force on {known - changed}, to be applied on {changed}")
    return status
