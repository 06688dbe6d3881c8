"""`torchpar facts`: what this host is, to plan for it elsewhere or to feed a configuration management."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.output import echo_json
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import ConfigError
from torchpar.facts.topology import facts_json
from torchpar.host.inputs import LIVE, load, load_facts


@click.command()
@click.option("--root", type=FilePath(), default=LIVE, help="Read the host below DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which it does anyway.")
def facts(root: Path, as_json: bool) -> None:
    """Print this host's facts as JSON.

    `torchpar plan --facts FILE` plans for the host elsewhere. As a fact of Ansible: link it as
    /etc/ansible/facts.d/torchpar.fact.
    """
    try:
        # The interpreters that the conf names are facts too, as long as the conf can be read.
        found = load(root).facts
    except ConfigError:
        found = load_facts(root)
    echo_json(facts_json(found))
