"""`torchpar fleet diff`: what `torchpar apply` would change on every host."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click

from torchpar.cli.fleet_hosts import Fleet, fleet_options, plan_fleet
from torchpar.cli.fleet_output import echo_findings, echo_fleet_json
from torchpar.cli.output import count, echo_block
from torchpar.fleet.names import say_hosts


@click.command(short_help="Show what applying the conf would change.")
@fleet_options
def diff(folder: Path, conf: Path | None, as_json: bool) -> int:
    """Show what `torchpar apply` would change, and which services would have to restart; exit 2 if anything would.

    Each change once, with the hosts that have it. All of one host: torchpar diff --facts FILE.
    """
    fleet = plan_fleet(folder, conf)
    changed = sum(1 for each in fleet.summaries if each.changed)
    status = fleet.overview.status(differs=bool(changed))
    if as_json:
        echo_fleet_json(fleet, status)
        return status
    echo_findings(fleet.overview)
    _echo_changes(fleet)
    restarts = sum(each.restarts for each in fleet.summaries)
    known = sum(1 for each in fleet.summaries if each.name and not each.errors)
    click.echo(
        f"{count(changed, 'host')} of {known} would change, {count(restarts, 'running service')} would have to restart"
    )
    return status


def _echo_changes(fleet: Fleet) -> None:
    hosts: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for host in fleet:
        for row in host.changes:
            hosts[row.meaning, row.restart].append(host.summary.name)
    for (meaning, restart), names in hosts.items():
        lines = [f"{say_hosts(names)}: {meaning}"]
        lines += ["it is running there, and gets this when it restarts"] if restart else []
        echo_block("", lines)
