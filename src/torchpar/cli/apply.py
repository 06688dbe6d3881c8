"""`torchpar apply`: validate, compile, put in force, read back."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import click

from torchpar.cli.compile import Compiled, compile_as_applied, compile_conf
from torchpar.cli.idle import is_idle
from torchpar.cli.inputs import load
from torchpar.cli.output import brief, echo_json, warn
from torchpar.cli.root import require_root
from torchpar.contract.errors import ExitStatus, StoreError, TorchparError
from torchpar.generations.drift import find_foreign, find_generation_drift, find_unloaded
from torchpar.generations.enforce import LiveSystemd, changing, is_in_force, read_active, running_among
from torchpar.generations.generation import Content, Generation
from torchpar.generations.store import Store
from torchpar.generations.transition import hold, prune, put_new_in_force
from torchpar.generations.unconfirmed import Unconfirmed, begin
from torchpar.generations.unit_check import check_units
from torchpar.host import systemd
from torchpar.host.clocks import read_clocks
from torchpar.units.changes import Change, compare, compare_links, unified


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would change; exit 2 if anything would.")
@click.option(
    "--restart",
    type=click.Choice(["never", "if-changed", "when-idle"]),
    default="never",
    help="Restart running services that changed; when-idle: only those that use no CPU now. Default: never.",
)
@click.option(
    "--confirm-within", type=click.IntRange(1, 10**8), metavar="SECONDS", help="Go back unless confirmed in time."
)
@click.option("--afresh", is_flag=True, help="Place all services anew, wherever they are now.")
@click.option("--boot", is_flag=True, help="Compile the conf as last applied for this host as it is now.")
@click.option("--json", "as_json", is_flag=True, help="Print what changed as JSON.")
def apply(dry_run: bool, restart: str, confirm_within: int | None, afresh: bool, boot: bool, as_json: bool) -> int:
    """Put the conf in force on this host.

    Writes a new generation, lets systemd load it, and reads back that systemd has what was meant. An invalid conf
    changes nothing. Running services go on as they are; those that must restart to get their new values are named.
    Services keep the CPUs that they have in force, as far as these are still right.
    """
    require_root("torchpar apply")
    systemd.require_systemd()
    store = Store()
    with contextlib.nullcontext() if dry_run else changing(store):
        active = read_active(store)
        compiled = _compile(active, boot=boot, afresh=afresh)
        warn(compiled.warnings)
        before = active[1] if active else Content({}, {}, "", (), {})
        changes = compare(before.files, compiled.content.files) + compare_links(before.links, compiled.content.links)
        if dry_run:
            for line in unified(changes):
                click.echo(brief(line))
            return ExitStatus.DIFFERS if changes else ExitStatus.DONE
        door = LiveSystemd(at_boot=boot)
        same = active is not None and before == compiled.content
        told: tuple[str, ...] = ()
        drift = find_generation_drift(*active) if active else ()
        warn(f"{line}; generation {active[0].number} is replaced" for line in drift if active)
        if active and same and not drift:
            done = hold(store, door, active[0], loaded=not find_unloaded(before))
        else:
            # What was in force may have lines that systemd passes over, and did when it was applied.
            told = () if boot else check_units(compiled.plan, compiled.content.files)
            warn(told)
            # Last, so that the time begins when it is about to be in force.
            unconfirmed = _way_back(store, active[0] if active else None, confirm_within, carry=boot or same)
            done = put_new_in_force(store, door, compiled.content, unconfirmed)
        warn((*done.notes, *prune(store)))
        waits = _what_waits(store, done.generation)
        with is_in_force(done.generation):
            outdated = running_among(change.unit for change in changes if change.what in ("changed", "removed"))
            restarted = _restart(outdated, restart)
    outdated = tuple(unit for unit in outdated if unit not in restarted)
    if as_json:
        echo_json(_report(done.generation, changes, outdated, (*compiled.warnings, *told, *done.notes), waits))
    else:
        _echo(done.generation, changes, outdated, restarted)
        _echo_what_waits(waits, asked=confirm_within is not None)
    return ExitStatus.DONE


def _compile(active: tuple[Generation, Content] | None, *, boot: bool, afresh: bool) -> Compiled:
    if not boot:
        inputs = load()
        inputs.refuse_foreign()
        return compile_conf(dataclasses.replace(inputs, facts=inputs.facts.afresh()) if afresh else inputs)
    # Who can change what was applied last must not decide by that what runs as whom.
    return compile_as_applied(active[1].conf if active and not find_foreign(active[0]) else None)


def _way_back(
    store: Store, active: Generation | None, confirm_within: int | None, *, carry: bool
) -> Unconfirmed | None:
    """What comes back unless what is applied now is confirmed. A generation that waits for that already can only be
    made anew, for this host as it is now or because it is damaged, and then waits as long as it did."""
    waits = None
    with contextlib.suppress(StoreError):
        # One that is damaged, too, and so not `active`.
        waiting = store.active()
        try:
            waits = store.unconfirmed(waiting) if waiting else None
        except StoreError as error:
            # A boot goes on without it.
            if not carry:
                raise TorchparError(f"{error}; nothing has changed") from None
            warn([str(error)])
    if waits and carry:
        return waits
    if waits and waiting:
        left = waits.seconds_left(read_clocks())
        raise TorchparError(
            f"generation {waiting.number} still waits for its confirmation, for {left:.0f} s; first: torchpar confirm, "
            "or torchpar rollback; nothing has changed"
        )
    if not confirm_within or carry:
        return None
    if active is None:
        raise TorchparError("--confirm-within: there is no generation to go back to yet; apply once without it")
    return begin(active.number, confirm_within, read_clocks())


def _what_waits(store: Store, generation: Generation) -> dict[str, int] | None:
    """What comes back unless this generation is confirmed, for a person or a program; also of an earlier apply."""
    with contextlib.suppress(StoreError):
        if waits := store.unconfirmed(generation):
            return {"back": waits.back, "seconds_left": math.ceil(waits.seconds_left(read_clocks()))}
    return None


def _restart(outdated: tuple[str, ...], policy: str) -> tuple[str, ...]:
    chosen = outdated if policy == "if-changed" else () if policy == "never" else tuple(filter(is_idle, outdated))
    if chosen:
        systemd.restart(chosen)
    return chosen


def _report(
    generation: Generation,
    changes: tuple[Change, ...],
    outdated: tuple[str, ...],
    warnings: tuple[str, ...],
    waits: dict[str, int] | None,
) -> dict[str, object]:
    return {
        "changed": bool(changes),
        "generation": generation.number,
        "unconfirmed": waits,
        "units": [
            {"name": change.unit, "change": change.what, "restart_required": change.unit in outdated}
            for change in changes
        ],
        "warnings": list(warnings),
    }


def _echo(
    generation: Generation,
    changes: tuple[Change, ...],
    outdated: tuple[str, ...],
    restarted: tuple[str, ...],
) -> None:
    for change in changes:
        click.echo(f"{change.unit}: {change.what}")
    click.echo(f"generation {generation.number} is in force" + ("" if changes else "; no unit differs"))
    for unit in restarted:
        click.echo(f"{unit}: restarted")
    removed = {change.unit for change in changes if change.what == "removed"}
    for unit in outdated:
        if unit in removed:
            click.echo(f"{unit} is no longer in the conf; it runs until it is stopped: systemctl stop {unit}")
        else:
            click.echo(f"{unit} runs with its old values; to get the new ones: systemctl restart {unit}")


def _echo_what_waits(waits: dict[str, int] | None, *, asked: bool) -> None:
    if waits:
        click.echo(f"it is taken back in {waits['seconds_left']} s unless you run: torchpar confirm")
    elif asked:
        click.echo("it was so before and is not taken back: there is nothing to confirm")
