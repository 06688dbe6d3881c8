"""`torchpar fleet`: many hosts from their facts, which `torchpar facts` has exported on each."""

from __future__ import annotations

import click

from torchpar.cli.group import Commands

# A command is a line here: its name, and the module with the function of that name.
COMMANDS = {
    "plan": "torchpar.cli.fleet_plan",
    "diff": "torchpar.cli.fleet_diff",
    "check": "torchpar.cli.fleet_check",
    "report": "torchpar.cli.fleet_report",
    "haproxy": "torchpar.cli.fleet_haproxy",
}


@click.command(cls=Commands, modules=COMMANDS, short_help="Look at many hosts, from their facts.")
def fleet() -> None:
    """Look at many hosts at once, from the facts that `torchpar facts` exported on each. See torchpar-fleet(7)."""
