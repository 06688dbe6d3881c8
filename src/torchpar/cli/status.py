"""`torchpar status`: whether every service runs as it should, how fast, and what is wrong since when and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import click

from torchpar.cli.names import ServiceName
from torchpar.cli.output import echo_block, echo_json
from torchpar.cli.service_lines import describe, is_wrong
from torchpar.contract.errors import ExitStatus
from torchpar.contract.typed_json import shape
from torchpar.contract.unit_names import no_such_service
from torchpar.contract.unit_names import shorten as shorten_unit
from torchpar.daemon.client import ask_daemon, may_not_ask
from torchpar.daemon.figures import live_figures
from torchpar.daemon.moves import read_moved
from torchpar.daemon.state import Moved, ServiceState, State, parse_state
from torchpar.generations.enforce import WAY_BACK
from torchpar.generations.store import Store
from torchpar.generations.unconfirmed import Unconfirmed
from torchpar.host import systemd
from torchpar.host.clocks import read_clocks
from torchpar.verify.observe import live_readers, observe

# Between two looks at what the services use, where there is no torchpard that has looked before.
_LOOK_SECONDS = 0.5

_STRANGER = (
    "torchpard answers root and the members of the group torchpar only, so this is what every user may see; for all of"
    " it: sudo torchpar status"
)
_NO_DAEMON = "torchpard does not answer, so this is a look without it; see: systemctl status torchpard"


@click.command(short_help="Show whether every service runs right, and how fast.")
@click.argument("names", nargs=-1, type=ServiceName())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(names: tuple[str, ...], as_json: bool) -> int:
    """Show every service, or NAMES: does it run right, how fast, and what is wrong.

    What is wrong is marked "!", and the exit status is 1 then; 0 if all is well, 3 if this user may not see enough to
    tell.
    """
    systemd.require_systemd()
    answer, note = read_answer()
    state = parse_state(answer)
    services = choose(state, names)
    waits = answer.get("unconfirmed")
    waiting = shape(waits, Unconfirmed).seconds_left(read_clocks()) if waits else 0.0
    if waits:
        answer["unconfirmed"] = {"back": waits["back"], "seconds_left": round(waiting)}
    if as_json:
        units = {service.unit for service in services}
        echo_json({**answer, "services": [row for row in answer["services"] if row["unit"] in units]})
    else:
        _echo_services(services)
        _echo_host(state, note, _unconfirmed(state.generation, waits["back"], round(waiting)) if waits else "")
    if any(map(is_wrong, services)) or (not names and state.wrong):
        return ExitStatus.FAILED
    return ExitStatus.UNKNOWN if note else ExitStatus.DONE


def read_answer() -> tuple[dict[str, Any], str]:
    """Returns torchpard's answer, or a look without it, and what a user who may not ask it should know, or ""."""
    if answer := ask_daemon():
        return answer, ""
    figures, observation = live_figures(), observe(Store(), systemd, live_readers())
    stranger = may_not_ask()
    figures.look(observation["services"], time.monotonic())
    if any(row["main_pid"] for row in observation["services"]):
        time.sleep(_LOOK_SECONDS)
        figures.look(observation["services"], time.monotonic())
    whole = figures.complete(observation, time.monotonic(), *([] if stranger else [_NO_DAEMON]))
    whole["moved"] = read_moved(observation["services"])
    if not stranger:
        return whole, ""
    # What is wrong may be among what this user does not see.
    return {**whole, "well": None if whole["well"] else False}, _STRANGER


def choose(state: State, names: Iterable[str]) -> list[ServiceState]:
    """Returns the services of these names; all where there are none. Raises NoSuchServiceError."""
    chosen: dict[str, ServiceState] = {}
    for name in names:
        found = {service.unit: service for service in state.services if service.is_called(name)}
        if not found:
            raise no_such_service(name, "is in force or runs", (service.title for service in state.services))
        chosen |= found
    return list(chosen.values()) if chosen else list(state.services)


def _echo_services(services: list[ServiceState]) -> None:
    widest = max((len(service.title) for service in services), default=0)
    for service in services:
        echo_block(service.title, describe(service), mark=is_wrong(service), column=widest)
    if not services:
        click.echo("No service is in force; write [Train NAME] in /etc/torchpar.conf, then: torchpar apply")


def _echo_host(state: State, note: str, waiting: str) -> None:
    click.echo()
    conf = {"in sync": "as the conf says", "unknown": "conf unknown"}.get(state.conf, f"conf {state.conf}")
    echo_block("", [f"generation {state.generation or 'none'}, {conf}", *filter(None, (waiting, note))])
    for moved in state.moved:
        echo_block("", [say_moved(moved)])
    for told in state.wrong:
        echo_block("", [told.text], mark=True)


def say_moved(moved: Moved) -> str:
    """Says which CPUs a service has for now, since when, and why."""
    since, name = time.strftime("%H:%M:%S", time.localtime(moved.since_timestamp_seconds)), shorten_unit(moved.unit)
    if moved.lent_to:
        return f"{name} is idle, and lends CPUs {moved.lent_cpus} to {moved.lent_to}"
    if moved.borrowed_cpus:
        what = f"{name} has CPUs {moved.cpus} since {since}: it borrows {moved.borrowed_cpus} of {moved.lenders}"
        return f"{what}, and shares its own with {moved.beside}" if moved.beside else what
    if moved.cpus == moved.planned_cpus and not moved.beside:
        return f"{name} has all of its CPUs again since {since}"
    why = f"it shares them with {moved.beside}" if moved.beside else "the others are offline"
    return f"{name} has CPUs {moved.cpus} of its {moved.planned_cpus} since {since}: {why}"


def _unconfirmed(generation: int | None, back: int, seconds_left: int) -> str:
    if seconds_left > 0:
        return f"generation {back} comes back in {seconds_left} s unless you run: torchpar confirm"
    return f"generation {generation} was not confirmed in time, and {back} comes back; see: systemctl status {WAY_BACK}"
