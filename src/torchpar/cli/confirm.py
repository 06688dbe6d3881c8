"""`torchpar confirm`: keep what `torchpar apply --confirm-within` put in force."""

from __future__ import annotations

import click

from torchpar.cli.apply import ROLLBACK_TIMER
from torchpar.cli.root import require_root
from torchpar.errors import TorchparError
from torchpar.host import systemd
from torchpar.store import Store


@click.command()
def confirm() -> None:
    """Keep what `torchpar apply --confirm-within` put in force."""
    require_root("torchpar confirm")
    systemd.require_systemd()
    if not systemd.has_timer(ROLLBACK_TIMER):
        raise TorchparError("there is nothing to confirm: no apply waits for it")
    systemd.stop_timer(ROLLBACK_TIMER)
    active = Store().active()
    click.echo(f"generation {active.number if active else '?'} stays in force")
