"""A command with commands of its own: each is in a module that is imported when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from torchpar.conf.syntax import hint
from torchpar.contract.errors import printable


class Commands(click.Group):
    """A group of commands by the modules that hold them, so that `torchpar status` does not import what only
    `torchpar plan` needs. In its module a command has the name by which it is called."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **more: Any) -> None:
        super().__init__(*args, **more)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Lists the commands in their order."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command; None where there is none of that name."""
        if cmd_name not in self.modules:
            return None
        command: click.Command = getattr(importlib.import_module(self.modules[cmd_name]), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command, or fails with the nearest one."""
        if args and args[0] not in self.modules and not args[0].startswith("-"):
            ctx.fail(f"No such command '{printable(args[0], 60)}'{hint(args[0], self.modules) or '.'}")
        return super().resolve_command(ctx, args)
