"""`torchpar validate`: everything that is wrong with the conf, and whether it fits the host."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.options import read_replaced, replacing_option
from torchpar.cli.output import count, echo_json, warn
from torchpar.cli.paths import FilePath
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError, ExitStatus, PlacementError, Problem
from torchpar.generations.compile import compile_conf
from torchpar.generations.unit_check import can_check, check_units
from torchpar.host.conf import ConfReader
from torchpar.host.inputs import LIVE, load


@click.command(short_help="Say everything that is wrong with the conf.")
@click.argument("files", nargs=-1, type=FilePath())
@click.option("--root", type=FilePath(), default=LIVE, help="Read the host below DIR.")
@click.option("--facts", "facts_file", type=FilePath(), help="Check for the host of FILE.")
@click.option("--config", "conf_file", type=FilePath(), help="Read FILE as the only conf, or DIR as /etc.")
@replacing_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate(
    files: tuple[Path, ...],
    root: Path,
    facts_file: Path | None,
    conf_file: Path | None,
    places: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Say everything that is wrong with the conf, or with FILES in its place.

    With --replacing PATH, the conf as it would be with FILE installed as PATH; "" is none. All errors of all files,
    each with file and line. Exits 78 if there are any. Changes nothing.
    """
    try:
        files_read, services, warnings = _check(files, root, facts_file, conf_file, places)
    except (ConfigError, PlacementError) as error:
        if not as_json:
            raise
        echo_json({"valid": False, "files": None, "services": None, "problems": _problems(error), "warnings": []})
        return error.exit_status
    if as_json:
        found = {"valid": True, "files": list(files_read), "services": services, "problems": []}
        echo_json({**found, "warnings": list(warnings)})
        return ExitStatus.DONE
    warn(warnings)
    click.echo(f"{', '.join(files_read) or 'no file'}: valid, {count(services, 'service')}")
    return ExitStatus.DONE


def _check(
    files: tuple[Path, ...], root: Path, facts_file: Path | None, conf_file: Path | None, places: tuple[Path, ...]
) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """Returns the files of the conf, the number of its services, and the warnings.

    Raises ConfigError and PlacementError.
    """
    if places and conf_file:
        raise click.UsageError("--config names the only conf: nothing of it can be replaced")
    if places:
        given: tuple[ConfFile, ...] | None = read_replaced(places, files, root)
    else:
        given = ConfReader().read_files(files, trusted=False) if files else None
    inputs = load(root, facts_file, conf_file, files=given)
    inputs.refuse_foreign()
    compiled = compile_conf(inputs)
    more: tuple[str, ...] = ()
    if root == LIVE and not facts_file and can_check():
        more = check_units(compiled.plan, compiled.content.files)
    names = tuple(file.path for file in inputs.files)
    return names, len(inputs.config.services), (*compiled.warnings, *more)


def _problems(error: ConfigError | PlacementError) -> list[dict[str, object]]:
    """Makes a row for each problem; its file and line are null where it is of no line."""
    if isinstance(error, PlacementError):
        return [{"file": None, "line": None, "what": str(error)}]
    return [
        {"file": found.place.file, "line": found.place.line, "what": found.what}
        if isinstance(found, Problem)
        else {"file": None, "line": None, "what": found}
        for found in error.found
    ]
