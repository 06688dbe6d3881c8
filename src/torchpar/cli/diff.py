"""`torchpar diff`: what `torchpar apply` would change."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.difference import find_changes
from torchpar.cli.output import brief, echo_json
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import ExitStatus, TorchparError
from torchpar.generations.enforce import running_among
from torchpar.host import systemd
from torchpar.units.changes import unified


@click.command()
@click.option("--config", "conf_file", type=FilePath(), help="Read FILE as the only conf.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(conf_file: Path | None, as_json: bool) -> int:
    """Show what differs between the conf and what is in force; exit 2 if anything does."""
    changes = find_changes(conf_file)
    try:
        outdated = running_among(systemd, (change.unit for change in changes if change.what in ("changed", "removed")))
    except TorchparError:
        outdated = ()
    if as_json:
        rows = [
            {
                "name": change.unit,
                "change": change.what,
                "restart_required": change.unit in outdated,
                "diff": list(unified([change])),
            }
            for change in changes
        ]
        echo_json({"changed": bool(changes), "units": rows})
    else:
        for line in unified(changes):
            click.echo(click.style(brief(line), fg={"+": "green", "-": "red"}.get(line[:1])))
        for unit in outdated:
            click.echo(f"{unit} is running; it gets this when it restarts")
    return ExitStatus.DIFFERS if changes else ExitStatus.DONE
