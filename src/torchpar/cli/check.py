"""`torchpar check`: whether the conf is in force, by the exit status."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.difference import find_changes
from torchpar.cli.paths import FilePath
from torchpar.errors import ExitStatus


@click.command()
@click.option("--config", "conf_file", type=FilePath(), help="Read FILE as the only conf.")
def check(conf_file: Path | None) -> int:
    """Exit 0 if the conf is in force, 2 if it differs, 78 if it is invalid; a line for each unit that differs."""
    changes = find_changes(conf_file)
    for change in changes:
        click.echo(f"{change.unit}: {change.what}")
    return ExitStatus.DIFFERS if changes else ExitStatus.DONE
