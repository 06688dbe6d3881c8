"""Waits until a generation should have been confirmed, and goes back from it: torchpar-way-back.service.

It is a servant of what is in the store (generations/unconfirmed.py): started before such a generation is in force, at
each boot that finds one, and again when it fails.
"""

from __future__ import annotations

import time

import click

from torchpar.cli.output import warn
from torchpar.generations.compile import compile_as_applied
from torchpar.generations.enforce import LiveSystemd, changing, is_in_force, refuse_foreign
from torchpar.generations.last_apply import find_failed_services
from torchpar.generations.rollbacks import NOT_CONFIRMED, note_rollback
from torchpar.generations.store import Store
from torchpar.generations.transition import Outcome, put_new_in_force, put_old_in_force
from torchpar.generations.unconfirmed import Unconfirmed
from torchpar.host import systemd
from torchpar.host.clocks import read_clocks
from torchpar.host.facts import read_manifest
from torchpar.host.inputs import load

# A clock may be set, and a generation confirmed by a command that cannot tell this process.
_LONGEST_SLEEP = 30.0


def go_back_in_time(store: Store) -> None:
    """Waits until the first generation that is not confirmed should have been, and goes back from it if it is in force.

    Returns once none waits. Raises TorchparError when it cannot go back.
    """
    # Without the lock, which others need meanwhile: of a generation that is not in force yet, too.
    while waiting := store.waiting():
        left = min(unconfirmed.seconds_left(read_clocks()) for unconfirmed in waiting)
        if left > 0:
            time.sleep(min(left, _LONGEST_SLEEP))
            continue
        with changing(store, wait=True):
            active = store.active()
            unconfirmed = store.unconfirmed(active) if active else None
            if unconfirmed and unconfirmed.seconds_left(read_clocks()) <= 0:
                done = restore(store, unconfirmed.back)
                warn(done.notes)
                number, left = done.generation.number, active.number if active else 0
                failed = find_failed_services(left)
                note_rollback(store, left, number, f"{NOT_CONFIRMED}; {failed}" if failed else NOT_CONFIRMED)
                click.echo(f"generation {number} is in force: generation {left} was not confirmed in time")
                with is_in_force(done.generation):
                    restart_again(unconfirmed)


def restart_again(unconfirmed: Unconfirmed) -> None:
    """Restarts the services that were restarted for what is gone now, but for those that somebody has stopped or that
    have come to their end, and says which. Raises SystemdError."""
    if unconfirmed.restarted:
        for unit in systemd.restart_unless_stopped(unconfirmed.restarted):
            click.echo(f"{unit}: restarted")


def restore(store: Store, number: int) -> Outcome:
    """Puts in force what was so before a generation that is not confirmed, for the host as it is now.

    Raises StoreError, SystemdError and, where the host is another one, ConfigError and PlacementError.
    """
    generation = store.generation(number)
    content = generation.read()
    refuse_foreign(generation)
    if dict(content.manifest) == read_manifest():
        return put_old_in_force(store, LiveSystemd(), generation)
    compiled = compile_as_applied(load(files=content.conf))
    warn(compiled.warnings)
    return put_new_in_force(store, LiveSystemd(), compiled.content)
