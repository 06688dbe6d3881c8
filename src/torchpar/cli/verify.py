"""`torchpar verify`: whether what runs is what was planned, process by process."""

from __future__ import annotations

import math
from typing import Any

import click

from torchpar.cli.names import ServiceName
from torchpar.cli.output import brief, echo_json
from torchpar.contract.errors import ExitStatus, StoreError
from torchpar.contract.unit_names import no_such_service
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.processes import read_running_unit
from torchpar.plan.record import ServiceRecord
from torchpar.verify.compare import Item, Verdict, summary
from torchpar.verify.observe import observe_undeclared
from torchpar.verify.service import Around, item_json, verify_unit

_COLOURS = {Verdict.OK: "green", Verdict.DRIFT: "red", Verdict.UNKNOWN: "yellow", Verdict.NOT_APPLICABLE: None}


@click.command()
@click.argument("names", nargs=-1, type=ServiceName())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Compare the running services, or NAMES, with their plan.

    CPUs of every thread, cpuset, memory policy, allocator, environment, threads, throttling. Exits 0 if all is as
    planned, 1 if something drifted or runs that has left the conf, 3 if something cannot be told.
    """
    systemd.require_systemd()
    results: list[dict[str, Any]] = []
    verdicts = []
    services = _chosen(names)
    for service in services:
        properties = systemd.unit_properties(service.unit)
        if not properties["MainPID"] or properties["ActiveState"] not in ("active", "reloading", "deactivating"):
            if names and not as_json:
                click.echo(f"{service.unit} is not running")
            continue
        items = verify_unit(service, properties, read_running_unit)
        verdicts.append(summary(items))
        results.append(
            {
                "unit": service.unit,
                "main_pid": properties["MainPID"],
                "verdict": verdicts[-1].value,
                "items": [item_json(item) for item in items],
            }
        )
        if not as_json:
            _echo_unit(service.unit, properties["MainPID"], verdicts[-1], items)
    in_force = {service.unit for service in services}
    around = Around(in_force_since=0.0, until=math.inf)
    undeclared, notices = ([], []) if names else observe_undeclared(systemd, read_running_unit, in_force, around)
    for stray in (row for row in undeclared if not row["in_force"]):
        verdicts.append(Verdict.DRIFT)
        results.append({"unit": stray["unit"], "main_pid": stray["main_pid"], "verdict": "out of force", "items": []})
        notices += (f"{stray['unit']} {clause}" for clause in stray["wrong"])
    for notice in () if as_json else notices:
        click.echo(brief(notice))
    if as_json:
        echo_json(results)
    elif not results and not names:
        click.echo("no torchpar service is running")
    if Verdict.DRIFT in verdicts:
        return ExitStatus.FAILED
    return ExitStatus.UNKNOWN if Verdict.UNKNOWN in verdicts else ExitStatus.DONE


def _chosen(names: tuple[str, ...]) -> list[ServiceRecord]:
    active = Store().active()
    if active is None:
        raise StoreError("nothing has been applied on this host yet; run: torchpar apply")
    services = active.read().services()
    if not names:
        return list(services)
    chosen = []
    for name in names:
        found = [service for service in services if service.is_called(name)]
        if not found:
            titles = (service.title for service in services)
            raise no_such_service(name, f"in generation {active.number}", titles)
        chosen += found
    return chosen


def _echo_unit(unit: str, main_pid: int, verdict: Verdict, items: tuple[Item, ...]) -> None:
    click.echo(f"{click.style(unit, bold=True)} (process {main_pid}): {_styled(verdict)}")
    for item in items:
        verdict_column = f"{_styled(item.verdict)}{' ' * (8 - len(item.verdict.value))}"
        click.echo(f"  {verdict_column}{item.what:<14} {brief(_text(item))}")
    for notice in dict.fromkeys(item.notice for item in items if item.notice):
        click.echo(brief(f"  ! it {notice}"))
    if any(item.verdict is Verdict.DRIFT and not item.notice for item in items):
        click.echo(f"  to place it as planned: systemctl restart {unit}")


def _text(item: Item) -> str:
    if item.verdict is Verdict.OK:
        return item.expected if item.actual == item.expected else f"{item.expected} ({item.actual})"
    if item.verdict is Verdict.NOT_APPLICABLE:
        return item.actual
    return f"planned {item.expected}; found: {item.actual}"


def _styled(verdict: Verdict) -> str:
    return click.style(verdict.value, fg=_COLOURS[verdict])
