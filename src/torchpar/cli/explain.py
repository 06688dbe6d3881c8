"""`torchpar explain NAME`: each value of a service, the rule behind it and the facts it rests on."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from torchpar.cli.names import ServiceName
from torchpar.cli.options import input_options
from torchpar.cli.output import brief, echo_json, terminal_width, warn
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.reports import RankReport
from torchpar.daemon.client import ask_daemon
from torchpar.host.inputs import LIVE, load
from torchpar.host.job_folder import read_rank_reports
from torchpar.plan.plan import Plan, ServicePlan, make_plan, plan_json


@click.command()
@click.argument("name", type=ServiceName())
@input_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(name: str, root: Path, facts_file: Path | None, conf_file: Path | None, as_json: bool) -> None:
    """Say why every value of service NAME is what it is."""
    inputs = load(root, facts_file, conf_file)
    services = inputs.config.find(name)
    plan = make_plan(inputs.config, inputs.facts)
    units = [service.unit for service in services]
    if as_json:
        explained = [service for service in plan_json(plan)["services"] if service["unit"] in units]
        echo_json(explained[0] if len(explained) == 1 else explained)
        return
    # What was measured is of this host.
    live = facts_file is None and root == LIVE
    measured = _measured() if live else {}
    for unit in units:
        _echo_service(plan, plan.find(unit), measured.get(unit), _running_processes(unit) if live else ())
    warn(warning for unit in units for warning in plan.find(unit).warnings)


def _measured() -> dict[str, str]:
    """Asks torchpard how jobs loaded their data in their last run, by unit."""
    services = (ask_daemon() or {}).get("services", ())
    return {service["unit"]: service["loading"] for service in services if service.get("loading")}


def _running_processes(unit: str) -> list[RankReport]:
    """Reads how many processes an inference service has found best on each of its places, where it runs."""
    return [report for report in read_rank_reports(unit) if report.why]


def _echo_processes(reports: Sequence[RankReport], width: int) -> None:
    for report in reports:
        click.echo(brief(f"  Processes={report.processes} on the place with CPUs {report.cpus}, as it runs"))
        click.echo(_fill(report.why, width))


def _echo_service(plan: Plan, service: ServicePlan, measured: str | None, processes: Sequence[RankReport]) -> None:
    width = max(40, min(100, terminal_width() or 100))
    click.echo(click.style(service.unit, bold=True))
    click.echo(f"  declared at {service.service.origins['']}")
    click.echo()
    for reason in service.reasons:
        click.echo(brief(f"  {reason.key}={reason.value}"))
        click.echo(_fill(reason.why, width))
    _echo_processes(processes, width)
    if measured:
        click.echo()
        click.echo("  Measured in the last half a minute of its last run")
        click.echo(_fill(measured, width))
    click.echo()
    click.echo("  Environment")
    for name, value in service.environment.items():
        if name != "TORCHPAR_JOB":
            click.echo(brief(f"      {name}={value}"))
    if plan.left_out:
        click.echo()
        click.echo("  CPUs that placement leaves out")
        by_reason: dict[str, list[int]] = {}
        for cpu, why in plan.left_out.items():
            by_reason.setdefault(why, []).append(cpu)
        for why, cpus in by_reason.items():
            click.echo(f"      {CpuSet(cpus)}: {why}")
    click.echo()


def _fill(text: str, width: int) -> str:
    return textwrap.fill(
        brief(text), width, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
    )
