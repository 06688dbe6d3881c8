"""Compares what the conf means now with what is in force, for `diff` and `check`, and shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from torchpar.cli.output import brief, echo_block, warn
from torchpar.generations import apply
from torchpar.generations.compile import compile_conf
from torchpar.generations.store import Store
from torchpar.host.inputs import inputs_of, load, read_conf
from torchpar.plan.export import Export
from torchpar.units.changes import Change, compare, compare_links, unified
from torchpar.units.sentences import say_change


def find_changes(conf_file: Path | None, export: Export | None = None) -> tuple[Change, ...]:
    """Finds the changes that `torchpar apply` would make here, or on the host that has exported its facts; `conf_file`
    replaces the conf.

    Raises ConfigError, PlacementError and StoreError.
    """
    inputs = inputs_of(export, read_conf(conf_file)) if export else load(conf_file=conf_file)
    compiled = compile_conf(inputs)
    warn(compiled.warnings)
    if export:
        before = export.in_force
        files, links = (before.files, before.links) if before else ({}, {})
        return compare(files, compiled.content.files) + compare_links(links, compiled.content.links)
    active = Store().active()
    return apply.find_changes((active, active.read()) if active else None, compiled)


def echo_changes(changes: Sequence[Change]) -> None:
    """Prints what changes mean, a sentence for each unit, then their unified diff."""
    for change in changes:
        echo_block("", [say_change(change)])
    if changes:
        click.echo()
    for line in unified(changes):
        click.echo(click.style(brief(line), fg={"+": "green", "-": "red"}.get(line[:1])))
