"""`torchpar rollback`: an earlier generation in force again."""

from __future__ import annotations

import contextlib
import os

import click

from torchpar.cli.names import GenerationNumber
from torchpar.cli.options import restart_option, wait_option
from torchpar.cli.output import warn
from torchpar.cli.root import require_root
from torchpar.cli.way_back import go_back_in_time, restart_again, restore
from torchpar.contract.errors import StoreError, SystemdError
from torchpar.generations.apply import Restart, is_chosen
from torchpar.generations.enforce import (
    WAY_BACK,
    LiveSystemd,
    changing,
    is_in_force,
    read_active,
    refuse_foreign,
    refuse_other_host,
    running_among,
)
from torchpar.generations.generation import Content, Generation
from torchpar.generations.restart import restart as restart_services
from torchpar.generations.rollbacks import RAN, note_rollback
from torchpar.generations.store import Store
from torchpar.generations.transition import Outcome, put_old_in_force
from torchpar.generations.unconfirmed import Unconfirmed
from torchpar.host import systemd
from torchpar.host.facts import read_manifest
from torchpar.host.person import read_person
from torchpar.host.processes import read_running_unit
from torchpar.units.changes import compare
from torchpar.verify.outdated import find_outdated


@click.command(short_help="Put an earlier generation in force again.")
@click.argument("number", type=GenerationNumber(min=1), required=False)
@click.option("--if-active", type=int, metavar="NUMBER", help="Do nothing unless this generation is active.")
@restart_option
@wait_option
@click.option("--in-time", is_flag=True, help="Wait, and go back from what is not confirmed in time.")
def rollback(number: int | None, if_active: int | None, restart: str, wait: bool, in_time: bool) -> None:
    """Put generation NUMBER in force again; without it, the one before the active one.

    After `torchpar apply --confirm-within` that is the one that would come back by itself, which it then need not. The
    conf stays as it is: until it is edited, `torchpar diff` shows what was rolled back.
    """
    require_root("torchpar rollback")
    systemd.require_systemd()
    store = Store()
    if in_time:
        go_back_in_time(store)
        return
    with changing(store, wait=wait):
        active = store.active()
        if if_active is not None and (active is None or active.number != if_active):
            click.echo(f"generation {if_active} is not active; nothing to do")
            return
        before = read_active(store)
        left_since = os.lstat(store.link).st_mtime if active else 0.0
        waits = store.unconfirmed(active) if active and number is None else None
        if waits:
            done = restore(store, waits.back)
        else:
            done = _put_in_force(store, active, number)
        warn(done.notes)
        if active and active != done.generation:
            note_rollback(store, active.number, done.generation.number, f"{read_person()}{RAN}")
        click.echo(f"generation {done.generation.number} is in force; the conf is as it was, see: torchpar diff")
        # It would find by itself that there is nothing left to do. Without the lock it may be another's already.
        with contextlib.suppress(SystemdError):
            systemd.stop(WAY_BACK)
        with is_in_force(done.generation):
            content = done.generation.read()
            changes = compare(before[1].files if before else {}, content.files)
            changed = {change.unit for change in changes if change.what == "changed"}
            found = _find_outdated(content, changed, left_since)
            outdated = tuple(unit for unit in found if not waits or unit not in waits.restarted)
            chosen = tuple(unit for unit in outdated if is_chosen(unit, Restart(restart), LiveSystemd()))
            gone = running_among(systemd, (change.unit for change in changes if change.what == "removed"))
            failures = _restart(waits, chosen)
    for unit in gone:
        click.echo(f"{unit} is not in this generation; it runs until it is stopped: systemctl stop {unit}")
    for unit in (unit for unit in outdated if unit not in chosen):
        click.echo(f"{unit} runs with its old values; to get the new ones: systemctl restart {unit}")
    if failures:
        with is_in_force(done.generation):
            raise SystemdError("\n".join(failures))


def _restart(waits: Unconfirmed | None, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Restarts what was restarted for what is gone, and the chosen units, and says which; returns what went wrong.

    A service that does not start keeps no other from its restart.
    """
    failures = []
    try:
        if waits:
            restart_again(waits)
    except SystemdError as error:
        failures.append(str(error))
    try:
        restart_services(LiveSystemd(), chosen)
        for unit in chosen:
            click.echo(f"{unit}: restarted")
    except SystemdError as error:
        failures.append(str(error))
    return tuple(failures)


def _find_outdated(content: Content, changed: set[str], left_since: float) -> tuple[str, ...]:
    """Finds the units that run with what was rolled back; without a plan to compare with, all that were changed."""
    try:
        services = content.services()
    except StoreError:
        return running_among(systemd, changed)
    sockets = running_among(systemd, (unit for unit in changed if unit.endswith(".socket")))
    return (*find_outdated(systemd, read_running_unit, services, left_since, anew=changed), *sockets)


def _put_in_force(store: Store, active: Generation | None, number: int | None) -> Outcome:
    generation = store.generation(number) if number is not None else store.previous(active) if active else None
    if generation is None:
        raise StoreError("there is no earlier generation to go back to")
    content = generation.read()
    refuse_foreign(generation)
    refuse_other_host(content, generation.number, read_manifest())
    if generation == active:
        # Whoever names it wants to keep it.
        store.settle(generation)
    return put_old_in_force(store, LiveSystemd(), generation)
