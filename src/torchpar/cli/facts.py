"""`torchpar facts`: what this host is, to plan for it elsewhere or to feed a configuration management."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from torchpar.cli.difference import find_running_outdated
from torchpar.cli.output import echo_json
from torchpar.cli.paths import FilePath
from torchpar.generations.enforce import read_active
from torchpar.generations.export import read_export
from torchpar.generations.store import Store
from torchpar.host.inputs import LIVE
from torchpar.plan.export import Export, export_json


@click.command()
@click.option("--root", type=FilePath(), default=LIVE, help="Read the host below DIR.")
@click.option("--config", "conf", type=FilePath(), help="Ask about the files that this conf names.")
@click.option("--as", "name", metavar="NAME", help="Put all of it below NAME, as Facter wants it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which it does anyway.")
def facts(root: Path, conf: Path | None, name: str | None, as_json: bool) -> None:
    """Print this host's facts as JSON.

    `torchpar plan --facts FILE` plans for the host elsewhere, and `torchpar fleet` for many. They are a fact of
    Ansible's and of Facter's with a link to /usr/share/torchpar/facts/torchpar.fact or torchpar-facter.
    """
    found = read_export(root, conf)
    if root == LIVE:
        found = _add_outdated(found)
    data = export_json(found)
    echo_json({name: data} if name else data)


def _add_outdated(export: Export) -> Export:
    """Adds what runs with older settings than are in force; nothing where systemd does not answer."""
    store = Store()
    active = read_active(store)
    if active is None or export.in_force is None:
        return export
    outdated = find_running_outdated(store, active[1])
    return dataclasses.replace(export, in_force=dataclasses.replace(export.in_force, outdated=outdated))
