"""`torchpar confirm`: keep what `torchpar apply --confirm-within` put in force."""

from __future__ import annotations

import contextlib

import click

from torchpar.cli.options import wait_option
from torchpar.cli.root import require_root
from torchpar.contract.errors import SystemdError
from torchpar.generations.enforce import WAY_BACK, changing
from torchpar.generations.store import Store
from torchpar.generations.transition import confirm as confirm_active
from torchpar.host import systemd


@click.command()
@wait_option
def confirm(wait: bool) -> None:
    """Keep what `torchpar apply --confirm-within` put in force."""
    require_root("torchpar confirm")
    systemd.require_systemd()
    store = Store()
    with changing(store, wait=wait):
        generation = confirm_active(store)
        # It would find by itself that there is nothing left to do. Without the lock it may be another's already.
        with contextlib.suppress(SystemdError):
            systemd.stop(WAY_BACK)
    click.echo(f"generation {generation.number} stays in force")
