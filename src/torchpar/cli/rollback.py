"""`torchpar rollback`: an earlier generation in force again."""

from __future__ import annotations

import click

from torchpar.changes import compare
from torchpar.cli.output import warn
from torchpar.cli.root import require_root
from torchpar.enforce import put_in_force, read_active, refuse_other_host, running_among
from torchpar.errors import StoreError
from torchpar.host import systemd
from torchpar.store import Store


@click.command()
@click.argument("number", type=click.IntRange(min=1), required=False)
@click.option("--if-active", type=int, metavar="NUMBER", help="Do nothing unless this generation is active.")
def rollback(number: int | None, if_active: int | None) -> None:
    """Put generation NUMBER in force again; without it, the one before the active one.

    The conf stays as it is: until it is edited, `torchpar diff` shows what was rolled back.
    """
    require_root("torchpar rollback")
    systemd.require_systemd()
    store = Store()
    with store.locked():
        active = store.active()
        if if_active is not None and (active is None or active.number != if_active):
            click.echo(f"generation {if_active} is not active; nothing to do")
            return
        if number is not None:
            generation = store.generation(number)
        else:
            found = store.previous(active) if active else None
            if found is None:
                raise StoreError("there is no earlier generation to go back to")
            generation = found
        content = generation.read()
        refuse_other_host(content, generation.number)
        before = read_active(store)
        warn(put_in_force(store, generation))
        changes = compare(before[1].files if before else {}, content.files)
        outdated = running_among(change.unit for change in changes)
    click.echo(f"generation {generation.number} is in force; the conf is as it was, see: torchpar diff")
    for unit in outdated:
        click.echo(f"{unit} runs with its old values; to get the new ones: systemctl restart {unit}")
