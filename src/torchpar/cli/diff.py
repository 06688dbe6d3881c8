"""`torchpar diff`: what `torchpar apply` would change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from torchpar.cli.difference import echo_changes, find_changes
from torchpar.cli.output import echo_json
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import ExitStatus, TorchparError
from torchpar.generations.enforce import running_among
from torchpar.host import systemd
from torchpar.host.inputs import load_export
from torchpar.plan.export import Export
from torchpar.units.changes import unified
from torchpar.units.sentences import say_change


@click.command(short_help="Show what differs between the conf and what is in force.")
@click.option("--facts", "facts_file", type=FilePath(), help="Compare with what is in force on the host of FILE.")
@click.option("--config", "conf_file", type=FilePath(), help="Read FILE as the only conf, or DIR as /etc.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(facts_file: Path | None, conf_file: Path | None, as_json: bool) -> int:
    """Show what differs between the conf and what is in force; exit 2 if anything does.

    In a sentence for each unit first, then as a unified diff of the units.
    """
    export = load_export(facts_file) if facts_file else None
    changes = find_changes(conf_file, export)
    outdated = _outdated([change.unit for change in changes if change.what in ("changed", "removed")], export)
    if as_json:
        rows = [
            {
                "name": change.unit,
                "change": change.what,
                "restart_required": change.unit in outdated,
                "meaning": say_change(change),
                "diff": list(unified([change])),
            }
            for change in changes
        ]
        echo_json({"changed": bool(changes), "units": rows})
    else:
        echo_changes(changes)
        for unit in outdated:
            click.echo(f"{unit} is running; it gets this when it restarts")
    return ExitStatus.DIFFERS if changes else ExitStatus.DONE


def _outdated(changed: Sequence[str], export: Export | None) -> tuple[str, ...]:
    """Finds those of the units that run; none where systemd does not say so."""
    if export:
        return tuple(sorted(set(changed) & set((export.in_force and export.in_force.running) or ())))
    try:
        return running_among(systemd, changed)
    except TorchparError:
        return ()
