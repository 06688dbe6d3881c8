"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from torchpar.cli.paths import FilePath
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
