"""`torchpar apply`: validate, compile, put in force, read back."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import click

from torchpar.cli.difference import echo_changes, echo_outdated, find_outdated_here, find_running_outdated
from torchpar.cli.options import restart_option, wait_option
from torchpar.cli.output import echo_behind, echo_json, warn
from torchpar.cli.root import require_root
from torchpar.contract.errors import ExitStatus, StoreError
from torchpar.generations.apply import Applied, Request, Restart, find_changes
from torchpar.generations.apply import apply as put_in_force
from torchpar.generations.compile import Compiled, compile_as_applied, compile_conf
from torchpar.generations.drift import find_foreign
from torchpar.generations.enforce import LiveSystemd, changing, read_active
from torchpar.generations.generation import Content, Generation
from torchpar.generations.last_apply import noted
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.clocks import read_clocks
from torchpar.host.inputs import load
from torchpar.units.changes import Change
from torchpar.units.sentences import say_change


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would change; exit 2 if anything would.")
@restart_option
@click.option(
    "--confirm-within", type=click.IntRange(1, 10**8), metavar="SECONDS", help="Go back unless confirmed in time."
)
@wait_option
@click.option("--afresh", is_flag=True, help="Place all services anew, wherever they are now.")
@click.option("--boot", is_flag=True, help="Compile the conf as last applied for this host as it is now.")
@click.option("--json", "as_json", is_flag=True, help="Print what changed as JSON.")
def apply(
    dry_run: bool, restart: str, confirm_within: int | None, wait: bool, afresh: bool, boot: bool, as_json: bool
) -> int:
    """Put the conf in force on this host.

    Writes a new generation, lets systemd load it, and reads back that systemd has what was meant. An invalid conf
    changes nothing. Running services go on as they are; those that must restart to get their new values are named.
    Services keep the CPUs that they have in force, as far as these are still right.
    """
    require_root("torchpar apply")
    systemd.require_systemd()
    store = Store()
    if dry_run:
        active = read_active(store)
        compiled = _compile(active, boot=boot, afresh=afresh)
        return _show(compiled, find_changes(active, compiled), as_json=as_json)
    with noted(), changing(store, wait=wait):
        compiled = _compile(read_active(store), boot=boot, afresh=afresh)
        outdated = () if boot else find_running_outdated(store, compiled.content)
        request = Request(Restart(restart), confirm_within, at_boot=boot, outdated=outdated)
        applied = put_in_force(store, LiveSystemd(at_boot=boot), compiled, request, warn)
        waits = _what_waits(store, applied.generation)
    if as_json:
        echo_json(_report(applied, waits))
    else:
        _echo(applied)
        _echo_what_waits(waits, asked=confirm_within is not None)
    return ExitStatus.DONE


def _compile(active: tuple[Generation, Content] | None, *, boot: bool, afresh: bool) -> Compiled:
    if not boot:
        inputs = load()
        inputs.refuse_foreign()
        return compile_conf(dataclasses.replace(inputs, facts=inputs.facts.afresh()) if afresh else inputs)
    # An edit that was not applied is not put in force by a reboot. Who can change what was applied last must not decide
    # by that what runs as whom.
    return compile_as_applied(load(files=active[1].conf if active and not find_foreign(active[0]) else None))


def _show(compiled: Compiled, changes: tuple[Change, ...], *, as_json: bool) -> int:
    outdated = find_outdated_here(
        (change.unit for change in changes if change.what in ("changed", "removed")), compiled.content
    )
    if as_json:
        echo_json(
            {
                "changed": bool(changes),
                "generation": None,
                "unconfirmed": None,
                "units": [_unit(change, outdated) for change in changes],
                "restarted": [],
                "warnings": list(compiled.warnings),
            }
        )
    else:
        warn(compiled.warnings)
        echo_changes(changes)
        echo_outdated(outdated)
    return ExitStatus.DIFFERS if changes else ExitStatus.DONE


def _what_waits(store: Store, generation: Generation) -> dict[str, int] | None:
    """Returns the generation that comes back unless this one is confirmed, and the seconds left for that."""
    with contextlib.suppress(StoreError):
        if waits := store.unconfirmed(generation):
            return {"back": waits.back, "seconds_left": math.ceil(waits.seconds_left(read_clocks()))}
    return None


def _report(applied: Applied, waits: dict[str, int] | None) -> dict[str, object]:
    return {
        "changed": bool(applied.changes),
        "generation": applied.generation.number,
        "unconfirmed": waits,
        "units": [_unit(change, applied.outdated) for change in applied.changes],
        "restarted": list(applied.restarted),
        "warnings": list(applied.warnings),
    }


def _unit(change: Change, outdated: tuple[str, ...]) -> dict[str, object]:
    return {
        "name": change.unit,
        "change": change.what,
        "meaning": say_change(change),
        "restart_required": change.unit in outdated,
    }


def _echo(applied: Applied) -> None:
    for change in applied.changes:
        echo_behind("", say_change(change))
    same = "" if applied.changes else "; no unit differs"
    click.echo(f"generation {applied.generation.number} is in force{same}")
    for unit in applied.restarted:
        click.echo(f"{unit}: restarted")
    removed = {change.unit for change in applied.changes if change.what == "removed"}
    for unit in applied.outdated:
        if unit in removed:
            echo_behind("", f"{unit} is no longer in the conf; it runs until it is stopped: systemctl stop {unit}")
        else:
            echo_behind("", f"{unit} runs with its old values; to get the new ones: systemctl restart {unit}")


def _echo_what_waits(waits: dict[str, int] | None, *, asked: bool) -> None:
    if waits:
        back, left = waits["back"], waits["seconds_left"]
        click.echo(f"generation {back} comes back in {left} s unless you run: torchpar confirm")
    elif asked:
        click.echo("it was so before and is not taken back: there is nothing to confirm")
