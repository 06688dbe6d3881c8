"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from torchpar.cli.paths import FilePath
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import printable
from torchpar.generations.apply import Restart
from torchpar.host.conf import ConfReader, is_place
from torchpar.host.inputs import LIVE

F = TypeVar("F", bound=Callable[..., Any])


def input_options(command: F) -> F:
    """Adds the options --root, --config and --facts, gathered by `load`."""
    for option in (
        click.option("--root", type=FilePath(), default=LIVE, help="Read the host below DIR."),
        click.option("--facts", "facts_file", type=FilePath(), help="Plan for the host of FILE."),
        click.option("--config", "conf_file", type=FilePath(), help="Read FILE as the only conf, or DIR as /etc."),
    ):
        command = option(command)
    return command


replacing_option = click.option(
    "--replacing", "places", type=FilePath(), metavar="PATH", multiple=True, help="Read FILE as if it were PATH."
)

restart_option = click.option(
    "--restart",
    type=click.Choice([each.value for each in Restart]),
    default="never",
    help="Restart what runs with older settings; when-idle: only if it uses no CPU now. Default: never.",
)

wait_option = click.option("--wait", is_flag=True, help="Wait while another torchpar is at work on this host.")


def read_replaced(places: tuple[Path, ...], files: tuple[Path, ...], root: Path = LIVE) -> tuple[ConfFile, ...]:
    """Reads the conf below `root` as it would be with each of `files` installed at its place of `places`; one without a
    name is none, as if the file of the place were removed.

    Raises ConfigError, and click.UsageError where these are not as many or where a place is none of the conf.
    """
    if len(places) != len(files):
        raise click.UsageError(f"--replacing takes a FILE for each PATH: {len(places)} and {len(files)} are given")
    for place in places:
        if not is_place(place, root):
            raise click.UsageError(f"--replacing {printable(str(place))}: a file there is not read as one of the conf")
    sources = (None if file == Path() else file for file in files)
    return ConfReader().read(root, trusted=root == LIVE, replacing=dict(zip(places, sources, strict=True)))
