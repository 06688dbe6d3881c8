"""`torchpar diff`: what `torchpar apply` would change."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.difference import compile_given, echo_changes, echo_outdated, find_changes, find_outdated_here
from torchpar.cli.options import read_replaced, replacing_option
from torchpar.cli.output import echo_json
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import ExitStatus
from torchpar.generations.compile import Compiled
from torchpar.host.inputs import load_export
from torchpar.plan.export import Export
from torchpar.units.changes import unified
from torchpar.units.sentences import say_change


@click.command(short_help="Show what differs between the conf and what is in force.")
@click.argument("files", nargs=-1, type=FilePath(), metavar="[FILE]...")
@click.option("--facts", "facts_file", type=FilePath(), help="Compare with what is in force on the host of FILE.")
@click.option("--config", "conf_file", type=FilePath(), help="Read FILE as the only conf, or DIR as /etc.")
@replacing_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(
    files: tuple[Path, ...], facts_file: Path | None, conf_file: Path | None, places: tuple[Path, ...], as_json: bool
) -> int:
    """Show what differs between the conf and what is in force; exit 2 if anything does.

    In a sentence for each unit first, then as a unified diff of the units. With --replacing PATH, for the conf as it
    would be with FILE installed as PATH.
    """
    replaced = bool(files or places)
    if replaced and conf_file:
        raise click.UsageError("--config names the only conf: nothing of it can be replaced")
    export = load_export(facts_file) if facts_file else None
    compiled = compile_given(conf_file, read_replaced(places, files) if replaced else None, export)
    changes = find_changes(compiled, export)
    outdated = _outdated({change.unit for change in changes if change.what in ("changed", "removed")}, compiled, export)
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
        echo_json({"changed": bool(changes), "units": rows, "outdated": list(outdated)})
    else:
        echo_changes(changes)
        echo_outdated(outdated)
    return ExitStatus.DIFFERS if changes else ExitStatus.DONE


def _outdated(changed: set[str], compiled: Compiled, export: Export | None) -> tuple[str, ...]:
    """Finds what runs with other settings than the conf means; none where systemd does not say so."""
    if export:
        before = export.in_force
        return tuple(sorted({*changed, *before.outdated} & set(before.running or ()))) if before else ()
    return find_outdated_here(changed, compiled.content)
