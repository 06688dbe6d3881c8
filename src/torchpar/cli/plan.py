"""`torchpar plan`: what every service would get on this host."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from torchpar.cli.options import input_options
from torchpar.cli.output import count, echo_json, echo_table, shorten, warn
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import TorchparError
from torchpar.generations.compile import compile_conf
from torchpar.host.inputs import load
from torchpar.plan.picture import draw_plan
from torchpar.plan.plan import Plan, ServicePlan, plan_json
from torchpar.units.changes import find_moves


@click.command()
@input_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
@click.option("--svg", type=FilePath(), metavar="FILE", help="Draw the host with its services.")
@click.option("--afresh", is_flag=True, help="Place all services anew, wherever they are now.")
def plan(
    root: Path, facts_file: Path | None, conf_file: Path | None, as_json: bool, svg: Path | None, afresh: bool
) -> None:
    """Show what every service would get on this host. Changes nothing.

    Services stay on the CPUs that they have in force, as far as these are still right; those that move are named.
    """
    inputs = load(root, facts_file, conf_file)
    compiled = compile_conf(dataclasses.replace(inputs, facts=inputs.facts.afresh()) if afresh else inputs)
    made = compiled.plan
    if svg:
        try:
            svg.write_text(draw_plan(made), encoding="utf-8")
        except OSError as error:
            raise TorchparError(f"{svg}: {error.strerror}") from None
    if as_json:
        echo_json({**plan_json(made), "warnings": list(compiled.warnings)})
        return
    _echo_plan(made)
    for move in find_moves(inputs.facts.in_force, made):
        click.echo(move)
    warn(compiled.warnings)


def _echo_plan(plan: Plan) -> None:
    facts = plan.facts
    nodes = sum(1 for node in facts.numa_nodes if node.cpus)
    click.echo(
        f"{facts.hostname}: CPUs {facts.online_cpus} ({count(len(facts.cores), 'core')}, "
        f"{count(nodes or 1, 'NUMA node')}), usable {plan.usable_cpus}"
    )
    click.echo()
    if plan.services:
        header = ("SERVICE", "BOOT", "CPUS", "CORES", "RANKS", "THREADS", "LOADERS", "MEMORY", "MALLOC", "GPUS")
        echo_table(header, [_row(service) for service in plan.services])
    else:
        click.echo("No service is declared; write [Train NAME] in /etc/torchpar.conf.")
    click.echo()
    if not all(service.own for service in plan.services):
        click.echo("* other services may run on these CPUs too")
    click.echo(f"CPUs that no enabled service holds: {plan.unassigned_cpus or 'none'}")


def _row(plan: ServicePlan) -> tuple[str, ...]:
    threads = sorted({rank.threads for rank in plan.ranks}, reverse=True)
    workers = sorted({rank.loader_workers for rank in plan.ranks}, reverse=True)
    return (
        plan.service.title,
        "yes" if plan.service.settings.enabled else "no",
        shorten(str(plan.cpus)) + ("" if plan.own else "*"),
        str(plan.cores),
        str(len(plan.ranks)),
        ",".join(map(str, threads)),
        _loaders(workers, plan) if plan.service.train() else "",
        f"{plan.memory.policy.value} {plan.memory.nodes}".strip(),
        plan.allocator,
        " ".join(gpu.name for gpu in plan.gpus),
    )


def _loaders(workers: list[int], plan: ServicePlan) -> str:
    train = plan.service.train()
    asked = train.loader_workers if train else None
    text = ",".join(map(str, workers)) if isinstance(asked, int) else asked or "auto"
    return f"{text} on {shorten(str(plan.loader_cpus))}" if plan.loader_cpus else text
