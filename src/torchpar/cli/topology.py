"""`torchpar topology`: the host's CPUs, nodes, caches and devices as torchpar sees them."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.output import echo_json, echo_table, warn
from torchpar.cli.paths import FilePath
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts, topology_json
from torchpar.host.inputs import LIVE, load_facts
from torchpar.placement.usable import find_usable_cores


@click.command(short_help="Show this host's CPUs, NUMA nodes, caches and devices.")
@click.option("--root", type=FilePath(), default=LIVE, help="Read the host below DIR.")
@click.option("--facts", "facts_file", type=FilePath(), help="Show the host of FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def topology(root: Path, facts_file: Path | None, as_json: bool) -> None:
    """Show this host's CPUs, NUMA nodes, caches and devices, without the conf."""
    facts = load_facts(root, facts_file)
    usable = find_usable_cores(facts, host_cpus=None, reserve=None)
    if as_json:
        left_out = {str(cpu): why for cpu, why in usable.left_out.items()}
        echo_json({**topology_json(facts), "usable_cpus": list(usable.cpus), "left_out": left_out})
        return
    _echo_topology(facts)
    click.echo(f"usable for services: CPUs {usable.cpus}")
    for cpu, why in usable.left_out.items():
        click.echo(f"  not CPU {cpu}: {why}")
    warn(facts.doubts)


def _echo_topology(facts: HostFacts) -> None:
    memory = "" if facts.memory_bytes is None else f", {facts.memory_bytes / 2**30:.1f} GiB"
    click.echo(f"{facts.hostname}: {facts.arch or 'unknown architecture'}{memory}")
    click.echo(f"online CPUs {facts.online_cpus}" + (f", offline {facts.offline_cpus}" if facts.offline_cpus else ""))
    if facts.allowed_cpus != facts.online_cpus:
        click.echo(f"allowed CPUs {facts.allowed_cpus} (cpuset)")
    if facts.cpu_limit is not None:
        click.echo(f"CPU quota {facts.cpu_limit:g} CPUs")
    click.echo()
    rows = []
    for core in facts.cores:
        rows.append((str(core), _ids(facts.packages, core), _ids(facts.numa_nodes, core), _l3_group(facts, core)))
    echo_table(("CORE'S CPUS", "PACKAGE", "NUMA NODE", "L3 GROUP"), rows)
    click.echo()
    for node in facts.numa_nodes:
        size = "unknown size" if node.mem_bytes is None else f"{node.mem_bytes / 2**30:.1f} GiB"
        click.echo(f"NUMA node {node.id}: {size}, CPUs {node.cpus or 'none'}")
    for device in (*facts.accelerators(), *facts.nics):
        node_id = "unknown" if device.numa_node is None else device.numa_node
        kind = "network" if device in facts.nics else "accelerator"
        click.echo(f"{kind} {device.name}: driver {device.driver or 'none'}, NUMA node {node_id}")


def _ids(places: object, core: CpuSet) -> str:
    if not isinstance(places, tuple):
        return "?"
    return ",".join(str(place.id) for place in places if not place.cpus.isdisjoint(core))


def _l3_group(facts: HostFacts, core: CpuSet) -> str:
    if facts.l3_groups is None:
        return "?"
    return ",".join(str(number) for number, group in enumerate(facts.l3_groups) if not group.isdisjoint(core))
