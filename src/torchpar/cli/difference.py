"""Compares what the conf means now with what is in force, for `diff` and `check`, and shows it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from torchpar.cli.output import brief, echo_behind, echo_block, warn
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import TorchparError
from torchpar.generations import apply
from torchpar.generations.compile import Compiled, compile_conf
from torchpar.generations.enforce import running_among
from torchpar.generations.generation import Content
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.inputs import inputs_of, load, read_conf
from torchpar.host.processes import read_running_unit
from torchpar.plan.export import Export
from torchpar.units.changes import Change, compare, compare_links, unified
from torchpar.units.sentences import say_change
from torchpar.verify.outdated import find_outdated


def compile_given(
    conf_file: Path | None, files: tuple[ConfFile, ...] | None = None, export: Export | None = None
) -> Compiled:
    """Compiles the conf, or `conf_file` or `files` instead of it, for this host or the one that has exported its facts,
    and warns.

    Raises ConfigError and PlacementError.
    """
    if export:
        inputs = inputs_of(export, read_conf(conf_file) if files is None else files)
    else:
        inputs = load(conf_file=conf_file, files=files)
    inputs.refuse_foreign()
    compiled = compile_conf(inputs)
    warn(compiled.warnings)
    return compiled


def find_changes(compiled: Compiled, export: Export | None = None) -> tuple[Change, ...]:
    """Finds the changes that `torchpar apply` would make here, or on the host that has exported its facts.

    Raises StoreError.
    """
    if export:
        before = export.in_force
        files, links = (before.files, before.links) if before else ({}, {})
        return compare(files, compiled.content.files) + compare_links(links, compiled.content.links)
    active = Store().active()
    return apply.find_changes((active, active.read()) if active else None, compiled)


def find_running_outdated(store: Store, content: Content) -> tuple[str, ...]:
    """Finds what runs with other settings than a generation has, as nobody has restarted it since an earlier apply."""
    try:
        since = os.lstat(store.link).st_mtime
        return find_outdated(systemd, read_running_unit, content.services(), since)
    except (OSError, TorchparError):
        # Nothing is in force yet; or systemd does not answer, which is said where it matters.
        return ()


def find_outdated_here(changed: Iterable[str], content: Content) -> tuple[str, ...]:
    """Finds what runs with other settings than the conf means; none where systemd does not say so."""
    try:
        return running_among(systemd, (*changed, *find_running_outdated(Store(), content)))
    except TorchparError:
        return ()


def echo_outdated(units: Iterable[str]) -> None:
    """Prints which units run with older settings."""
    for unit in units:
        echo_behind("", f"{unit} is running; it gets this when it restarts")


def echo_changes(changes: Sequence[Change]) -> None:
    """Prints what changes mean, a sentence for each unit, then their unified diff."""
    for change in changes:
        echo_block("", [say_change(change)])
    if changes:
        click.echo()
    for line in unified(changes):
        click.echo(click.style(brief(line), fg={"+": "green", "-": "red"}.get(line[:1])))
