"""`torchpar validate`: everything that is wrong with the conf, and whether it fits the host."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.output import warn
from torchpar.cli.paths import FilePath
from torchpar.generations.compile import compile_conf
from torchpar.generations.unit_check import can_check, check_units
from torchpar.host.conf import ConfReader
from torchpar.host.inputs import LIVE, load


@click.command()
@click.argument("files", nargs=-1, type=FilePath())
@click.option("--root", type=FilePath(), default=LIVE, help="Read the host below DIR.")
@click.option("--facts", "facts_file", type=FilePath(), help="Check for the host of FILE.")
def validate(files: tuple[Path, ...], root: Path, facts_file: Path | None) -> None:
    """Say everything that is wrong with the conf, or with FILES in its place.

    All errors of all files, each with file and line. Exits 78 if there are any. Changes nothing.
    """
    given = ConfReader().read_files(files, trusted=False) if files else None
    inputs = load(root, facts_file, files=given)
    inputs.refuse_foreign()
    compiled = compile_conf(inputs)
    warn(compiled.warnings)
    if root == LIVE and not facts_file and can_check():
        warn(check_units(compiled.plan, compiled.content.files))
    count = len(inputs.config.services)
    click.echo(f"{', '.join(file.path for file in inputs.files) or 'no file'}: valid, {count} services")
