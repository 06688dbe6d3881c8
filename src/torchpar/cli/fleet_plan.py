"""`torchpar fleet plan`: what every host would run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from torchpar.cli.fleet_hosts import fleet_options, plan_fleet
from torchpar.cli.fleet_output import echo_findings, echo_fleet_json
from torchpar.cli.output import count, echo_block, shorten
from torchpar.fleet.host import HostPlan, Summary

_IN_A_LINE = 6
_COLUMN = 24


@click.command()
@fleet_options
def plan(folder: Path, conf: Path | None, as_json: bool) -> int:
    """Show what every host would run, and first what is wrong.

    Hosts are those with facts in DIR or below it: a file for each, of any name, as `torchpar facts` printed it there.
    """
    fleet = plan_fleet(folder, conf)
    status = fleet.overview.status()
    if as_json:
        echo_fleet_json(fleet, status)
        return status
    echo_findings(fleet.overview)
    if fleet.overview.findings:
        click.echo()
    column = min(_COLUMN, max((len(each.name) for each in fleet.summaries), default=0))
    planned = 0
    for host in fleet:
        if host.summary.name and not host.summary.errors:
            echo_block(host.summary.name, [_numbers(host.summary), *_services(host)], column=column)
            planned += 1
    click.echo(f"{count(planned, 'host')}, {count(sum(each.services for each in fleet.summaries), 'service')}")
    return status


def _numbers(about: Summary) -> str:
    words = [count(about.cores, "core")]
    words += [count(about.gpus, "GPU")] if about.gpus else []
    words += [f"quality {about.quality:.2f}"] if about.quality is not None else []
    words += [count(about.changed, "change")] if about.changed else []
    words += [f"{count(about.restarts, 'running service')} to restart"] if about.restarts else []
    return ", ".join(words)


def _services(host: HostPlan) -> Iterator[str]:
    """Yields the services with their CPUs, as many in a line as are not cut."""
    texts = [f"{row.service} on {shorten(row.cpus)}" for row in host.services]
    for start in range(0, len(texts), _IN_A_LINE):
        yield ", ".join(texts[start : start + _IN_A_LINE])
