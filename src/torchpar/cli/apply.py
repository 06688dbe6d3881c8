"""`torchpar apply`: validate, compile, put in force, read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container

import click

from torchpar.changes import Change, compare, compare_links, unified
from torchpar.cli.idle import is_idle
from torchpar.cli.inputs import Inputs, load
from torchpar.cli.output import brief, echo_json, warn
from torchpar.cli.root import require_root
from torchpar.enforce import check_in_force, put_in_force, read_active, running_among
from torchpar.errors import ExitStatus, PlacementError, SystemdError, TorchparError
from torchpar.generations import Content, Generation
from torchpar.host import systemd
from torchpar.host.facts import read_manifest
from torchpar.plan import Plan, make_plan, plan_json
from torchpar.store import Store
from torchpar.unit_check import check_units
from torchpar.units import make_refusal, make_units

ROLLBACK_TIMER = "torchpar-rollback"


@dataclasses.dataclass(frozen=True)
class _Compiled:
    plan: Plan
    content: Content
    warnings: tuple[str, ...]


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would change; exit 2 if anything would.")
@click.option(
    "--restart",
    type=click.Choice(["never", "if-changed", "when-idle"]),
    default="never",
    help="Restart running services that changed; when-idle: only those that use no CPU now. Default: never.",
)
@click.option(
    "--confirm-within", type=click.IntRange(min=1), metavar="SECONDS", help="Go back unless confirmed in time."
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
    with store.locked():
        active = read_active(store)
        compiled = _compile_for_boot(active) if boot else _compile_checked(_load(afresh=afresh))
        warn(compiled.warnings)
        before = active[1] if active else Content({}, {}, "", (), {})
        changes = compare(before.files, compiled.content.files) + compare_links(before.links, compiled.content.links)
        if dry_run:
            for line in unified(changes):
                click.echo(brief(line))
            return ExitStatus.DIFFERS if changes else ExitStatus.DONE
        told: tuple[str, ...] = ()
        if active and before == compiled.content:
            generation, notes = active[0], _hold(store, active[0])
        else:
            # What was in force may have lines that systemd passes over, and did when it was applied.
            told = () if boot else check_units(compiled.plan, compiled.content.files)
            warn(told)
            generation, notes = _write(store, compiled, active[0] if active else None, confirm_within)
        warn(notes)
        outdated = running_among(change.unit for change in changes if change.what in ("changed", "removed"))
        restarted = _restart(outdated, restart)
    outdated = tuple(unit for unit in outdated if unit not in restarted)
    if as_json:
        echo_json(_report(generation, changes, outdated, (*compiled.warnings, *told, *notes)))
    else:
        _echo(generation, changes, outdated, restarted, confirm_within)
    return ExitStatus.DONE


def _load(*, afresh: bool) -> Inputs:
    inputs = load()
    return dataclasses.replace(inputs, facts=inputs.facts.afresh()) if afresh else inputs


def _compile(inputs: Inputs) -> _Compiled:
    plan = make_plan(inputs.config, inputs.facts)
    units = make_units(plan)
    content = Content(
        units.files, units.links, json.dumps(plan_json(plan), indent=1) + "\n", inputs.files, read_manifest()
    )
    return _Compiled(plan, content, (*inputs.unreachable(), *plan.warnings, *units.warnings))


def _compile_checked(inputs: Inputs) -> _Compiled:
    inputs.refuse_foreign()
    return _compile(inputs)


def _compile_for_boot(active: tuple[Generation, Content] | None) -> _Compiled:
    """The conf as last applied, for the host as it is now; a service that no longer fits is left out, and named.

    An edit that was not applied is not put in force by a reboot, and one service that asks for a CPU that is gone does
    not keep the others from starting.
    """
    inputs = load(files=active[1].conf if active else None)
    # A start would be refused, too; and one service keeps no other from starting.
    left_out = {unit: "; ".join(map(str, problems)) for unit, problems in inputs.refusals().items()}
    inputs = _without(inputs, left_out)
    while True:
        try:
            compiled = _compile(inputs)
        except PlacementError as error:
            if error.unit not in {service.unit for service in inputs.config.services}:
                raise
            left_out[error.unit or ""] = str(error)
            inputs = _without(inputs, left_out)
        else:
            refusals = {path: text for unit, why in left_out.items() for path, text in make_refusal(unit, why).items()}
            content = dataclasses.replace(compiled.content, files={**compiled.content.files, **refusals})
            warnings = [f"{why}; it cannot start until this is mended" for why in left_out.values()]
            return _Compiled(compiled.plan, content, (*warnings, *compiled.warnings))


def _without(inputs: Inputs, units: Container[str]) -> Inputs:
    services = tuple(service for service in inputs.config.services if service.unit not in units)
    return dataclasses.replace(inputs, config=dataclasses.replace(inputs.config, services=services))


def _write(
    store: Store, compiled: _Compiled, previous: Generation | None, confirm_within: int | None
) -> tuple[Generation, tuple[str, ...]]:
    if confirm_within and previous is None:
        raise TorchparError("--confirm-within: there is no generation to go back to yet; apply once without it")
    if systemd.has_timer(ROLLBACK_TIMER):
        raise TorchparError("an earlier apply still waits for its confirmation; first: torchpar confirm, or rollback")
    generation = store.write(compiled.content)
    try:
        if confirm_within and previous:
            # Before the flip, so that the way back is there whatever happens to this process.
            back = ["torchpar", "rollback", str(previous.number), "--if-active", str(generation.number)]
            systemd.start_timer(ROLLBACK_TIMER, confirm_within, back)
        notes = put_in_force(store, generation)
    except TorchparError:
        if confirm_within and systemd.has_timer(ROLLBACK_TIMER):
            systemd.stop_timer(ROLLBACK_TIMER)
        store.discard(generation)
        raise
    store.prune()
    return generation, notes


def _hold(store: Store, generation: Generation) -> tuple[str, ...]:
    """Nothing to write; but systemd may not have loaded what is active yet."""
    try:
        return check_in_force(generation)
    except SystemdError:
        return put_in_force(store, generation)


def _restart(outdated: tuple[str, ...], policy: str) -> tuple[str, ...]:
    chosen = outdated if policy == "if-changed" else () if policy == "never" else tuple(filter(is_idle, outdated))
    if chosen:
        systemd.restart(chosen)
    return chosen


def _report(
    generation: Generation, changes: tuple[Change, ...], outdated: tuple[str, ...], warnings: tuple[str, ...]
) -> dict[str, object]:
    return {
        "changed": bool(changes),
        "generation": generation.number,
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
    confirm_within: int | None,
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
    if confirm_within and changes:
        click.echo(f"it is taken back in {confirm_within} s unless you run: torchpar confirm")
