"""`torchpar check`: whether the conf is in force, by the exit status."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.difference import compile_given, find_changes
from torchpar.cli.output import brief, echo_json
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import ExitStatus, StoreError
from torchpar.generations.drift import find_drift
from torchpar.generations.store import Store
from torchpar.host.systemd import loaded_units
from torchpar.units.changes import Change
from torchpar.units.sentences import say_change


@click.command(short_help="Say by the exit status whether the conf is in force.")
@click.option("--config", "conf_file", type=FilePath(), help="Read FILE as the only conf, or DIR as /etc.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(conf_file: Path | None, as_json: bool) -> int:
    """Exit 0 if the conf is in force, 2 if it differs, 78 if it is invalid; a line for each unit that differs.

    What is not as torchpar left it in the store differs, too; torchpar apply mends it.
    """
    drift = find_drift(Store(), loaded_units())
    changes: tuple[Change, ...] = ()
    try:
        changes = find_changes(compile_given(conf_file))
    except StoreError:
        if not drift:
            raise
    if as_json:
        units = [{"name": change.unit, "change": change.what, "meaning": say_change(change)} for change in changes]
        echo_json({"in_sync": not (changes or drift), "units": units, "store": list(drift)})
    else:
        for line in (*drift, *(f"{change.unit}: {change.what}" for change in changes)):
            click.echo(brief(line))
    return ExitStatus.DIFFERS if changes or drift else ExitStatus.DONE
