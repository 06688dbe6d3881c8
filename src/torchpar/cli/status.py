"""`torchpar status`: every service with its state and placement, and what needs attention."""

from __future__ import annotations

from typing import Any

import click

from torchpar.cli.output import brief, echo_json, echo_table, shorten
from torchpar.contract.errors import ConfigError, ExitStatus, printable
from torchpar.contract.typed_json import shape
from torchpar.contract.unit_names import is_called, title_of
from torchpar.daemon.client import ask_daemon, why_no_answer
from torchpar.generations.enforce import WAY_BACK
from torchpar.generations.store import Store
from torchpar.generations.unconfirmed import Unconfirmed
from torchpar.host import systemd
from torchpar.host.clocks import read_clocks
from torchpar.verify.observe import live_readers, observe

# Reports come every two seconds or, where that takes longer, with each step.
SILENT_SECONDS = 60


@click.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(names: tuple[str, ...], as_json: bool) -> int:
    """Show every service, or NAMES: state, CPUs, whether it runs as planned; and what needs attention.

    Exits 1 if a service runs that is out of force: it has left the conf since it started.
    """
    systemd.require_systemd()
    answer = ask_daemon()
    if answer is None:
        answer = observe(Store(), systemd, live_readers())
        answer["notices"].append(f"{why_no_answer()}; this is a look without it")
    services = [service for service in answer["services"] if not names or _is_named(service, names)]
    if names and not services:
        raise ConfigError([f"no service {printable(' or '.join(names), 100)} is in force; see: torchpar status"])
    waits = answer.get("unconfirmed")
    if waits:
        left = round(shape(waits, Unconfirmed).seconds_left(read_clocks()))
        answer["unconfirmed"] = {"back": waits["back"], "seconds_left": left}
        answer["notices"].insert(0, _unconfirmed(answer["generation"], waits["back"], left))
    if as_json:
        echo_json({**answer, "services": services})
        return _exit_status(services)
    header = ("SERVICE", "STATE", "PLACED", "CPUS", "THREADS", "MEMORY", "MALLOC", "SPEED", "BOUND")
    echo_table(header, [_row(service) for service in services])
    click.echo()
    click.echo(f"generation {answer['generation'] or 'none'}, conf {answer['conf']}")
    for notice in answer["notices"]:
        click.echo(brief(f"! {notice}"))
    return _exit_status(services)


def _unconfirmed(generation: int, back: int, seconds_left: int) -> str:
    if seconds_left:
        return f"generation {back} comes back in {seconds_left} s unless you run: torchpar confirm"
    return f"generation {generation} was not confirmed in time, and {back} comes back; see: systemctl status {WAY_BACK}"


def _exit_status(services: list[dict[str, Any]]) -> ExitStatus:
    return ExitStatus.DONE if all(service["in_force"] for service in services) else ExitStatus.FAILED


def _is_named(service: dict[str, Any], names: tuple[str, ...]) -> bool:
    return any(is_called(service["kind"], service["name"], name) for name in names)


def _row(service: dict[str, Any]) -> tuple[str, ...]:
    policy = service["memory_policy"]
    drifted = [item["what"] for item in service["items"] if item["verdict"] == "drift"]
    return (
        title_of(service["kind"], service["name"]),
        service["state"],
        f"{service['placed'] or ''}{': ' + ', '.join(drifted) if drifted else ''}",
        shorten(service["cpus"]),
        ",".join(map(str, service["threads"])),
        f"{policy['policy']} {policy['nodes']}".strip(),
        _allocator(service),
        *speed(service.get("throughput")),
    )


def _allocator(service: dict[str, Any]) -> str:
    """Returns the malloc that a service runs with, where that is known not to be the planned one."""
    found = [item["actual"] for item in service["items"] if item["what"] == "allocator" and item["verdict"] == "drift"]
    return str(found[0] if found else service["allocator"])


def speed(throughput: dict[str, Any] | None) -> tuple[str, str]:
    """Returns a job's speed, and the reason why it is no faster: ("812 samples/s", "loader: waits 43 %").

    Nothing while it is not known, for example in the first seconds, or for a job that does not train.
    """
    if throughput is None:
        return "", ""
    share = f"waits {100 * throughput['loader_wait_share']:.0f} %"
    if throughput["silent_seconds"] > SILENT_SECONDS:
        return f"silent for {throughput['silent_seconds']:.0f} s", ""
    samples, steps = throughput["samples_per_second"], throughput["steps_per_second"]
    rate = f"{samples:.3g} samples/s" if samples else f"{steps:.3g} steps/s"
    if max(samples, steps) >= 1000:
        rate = f"{samples:.0f} samples/s" if samples else f"{steps:.0f} steps/s"
    return rate, f"{throughput['bound']}: {share}"
