"""`torchpar verify`: whether what runs is what was planned, process by process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import click

from torchpar.cli.names import ServiceName
from torchpar.cli.output import count, echo_behind, echo_json
from torchpar.contract.errors import ExitStatus, NotPermittedError, StoreError, TorchparError
from torchpar.contract.unit_names import no_such_service, shorten
from torchpar.generations.generation import Content
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.affinity import move_unit
from torchpar.host.processes import read_running_unit
from torchpar.plan.record import ServiceRecord
from torchpar.verify.compare import Item, Verdict, summary
from torchpar.verify.observe import observe_undeclared
from torchpar.verify.overrides import find_foreign
from torchpar.verify.service import RUNNING, Around, find_repair, item_json, verify_unit

_COLOURS = {Verdict.OK: "green", Verdict.DRIFT: "red", Verdict.UNKNOWN: "yellow", Verdict.NOT_APPLICABLE: None}


@click.command()
@click.argument("names", nargs=-1, type=ServiceName())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--repair", is_flag=True, help="First move threads that are on other CPUs to those planned.")
def verify(names: tuple[str, ...], as_json: bool, repair: bool) -> int:
    """Compare the running services, or NAMES, with their plan.

    CPUs of every thread, cpuset, memory policy, allocator, environment, threads, throttling. Exits 0 if all is as
    planned, 1 if something drifted or runs that has left the conf, 3 if something cannot be told. With --repair it
    compares what holds after threads have been moved; anything else takes a restart.
    """
    systemd.require_systemd()
    results: list[dict[str, Any]] = []
    verdicts = []
    content, services = _chosen(names)
    around = Around(
        in_force_since=0.0, until=math.inf, rendered=content.files, read_text=systemd.read_unit_file
    )
    for service in services:
        properties = systemd.unit_properties(service.unit)
        if not properties["MainPID"] or properties["ActiveState"] not in RUNNING:
            if names and not as_json:
                click.echo(f"{service.unit} is not running")
            continue
        if repair:
            _repair(service, properties)
        items = verify_unit(service, properties, read_running_unit)
        foreign = [told["text"] for told in find_foreign(service, properties, around.rendered, around.read_text)]
        verdicts.append(summary(items))
        results.append(
            {
                "unit": service.unit,
                "main_pid": properties["MainPID"],
                "verdict": verdicts[-1].value,
                "items": [item_json(item) for item in items],
                "overrides": foreign,
            }
        )
        if not as_json:
            _echo_unit(service.unit, properties["MainPID"], verdicts[-1], items, foreign)
    in_force = {service.unit for service in services}
    undeclared, wrong = ([], []) if names else observe_undeclared(systemd, read_running_unit, in_force, around)
    notices = [told["text"] for told in wrong]
    for stray in (row for row in undeclared if not row["in_force"]):
        verdicts.append(Verdict.DRIFT)
        results.append({"unit": stray["unit"], "main_pid": stray["main_pid"], "verdict": "out of force", "items": []})
        notices += (f"{stray['unit']} {told['text']}" for told in stray["wrong"])
    for notice in () if as_json else notices:
        echo_behind("", notice)
    if as_json:
        echo_json(results)
    elif not results and not names:
        click.echo("no torchpar service is running")
    if Verdict.DRIFT in verdicts:
        return ExitStatus.FAILED
    return ExitStatus.UNKNOWN if Verdict.UNKNOWN in verdicts else ExitStatus.DONE


def _repair(service: ServiceRecord, properties: Mapping[str, Any]) -> None:
    """Moves the threads of a service that are not where they may be, and says so. Raises TorchparError."""
    move = find_repair(service, properties, read_running_unit)
    if move is None:
        return
    try:
        moved = move_unit(move)
    except PermissionError:
        only_root = f"{service.unit}: only root may move its threads: sudo torchpar verify --repair"
        raise NotPermittedError(only_root) from None
    except OSError as error:
        raise TorchparError(f"{service.unit}: its threads cannot be moved: {error.strerror}") from None
    click.echo(f"{service.unit}: {count(moved, 'thread')} moved to CPUs {move.others.to}", err=True)


def _chosen(names: tuple[str, ...]) -> tuple[Content, list[ServiceRecord]]:
    active = Store().active()
    if active is None:
        raise StoreError("nothing has been applied on this host yet; run: torchpar apply")
    content = active.read()
    services = content.services()
    if not names:
        return content, list(services)
    chosen = []
    for name in names:
        found = [service for service in services if service.is_called(name)]
        if not found:
            titles = (service.title for service in services)
            raise no_such_service(name, f"in generation {active.number}", titles)
        chosen += found
    return content, chosen


def _echo_unit(unit: str, main_pid: int, verdict: Verdict, items: tuple[Item, ...], foreign: Sequence[str]) -> None:
    click.echo(f"{click.style(unit, bold=True)} (process {main_pid}): {_styled(verdict)}")
    for item in items:
        verdict_column = f"{_styled(item.verdict)}{' ' * (8 - len(item.verdict.value))}"
        echo_behind(f"  {verdict_column}{item.what:<14} ", _text(item))
    for notice in dict.fromkeys([*(item.notice for item in items if item.notice), *foreign]):
        echo_behind("  ! ", f"it {notice}")
    if any(item.verdict is Verdict.DRIFT and not item.notice for item in items):
        only_cpus = all(item.what == "CPUs" for item in items if item.verdict is Verdict.DRIFT and not item.notice)
        how = f"torchpar verify --repair {shorten(unit)}" if only_cpus else f"systemctl restart {unit}"
        echo_behind("  ", f"to place it as planned: {how}")


def _text(item: Item) -> str:
    if item.verdict is Verdict.OK:
        return item.expected if item.actual == item.expected else f"{item.expected} ({item.actual})"
    if item.verdict is Verdict.NOT_APPLICABLE:
        return item.actual
    return f"planned {item.expected}; found: {item.actual}"


def _styled(verdict: Verdict) -> str:
    return click.style(verdict.value, fg=_COLOURS[verdict])
