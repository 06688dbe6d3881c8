"""Draws a plan as SVG: packages, NUMA nodes, L3 groups and cores of a host, coloured by the service that gets them.

Nothing but boxes in boxes: each computes its size from what is in it, and is drawn where its parent puts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts, NumaNode, PciDevice
from torchpar.plan.plan import Plan, ServicePlan

# Okabe and Ito's colours, which people of all kinds of colour vision can tell apart, and lighter ones of the same.
PALETTE = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#B3DE69", "#BEBADA", "#FCCDE5",
    "#80B1D3", "#FDB462",
)  # fmt: skip
FREE = "#FFFFFF"
LEFT_OUT = "#D9D9D9"

CPU_WIDTH, CPU_HEIGHT = 30, 20
GAP, TITLE = 6, 18


@dataclass(frozen=True)
class _Box:
    """A rectangle with a title and boxes in it, in rows of at most `columns`; or a core, which is its CPUs."""

    title: str = ""
    children: tuple[_Box, ...] = ()
    columns: int = 1
    cpus: tuple[int, ...] = ()
    fill: str = "none"
    stroke: str = ""
    note: str = ""

    def rows(self) -> list[tuple[_Box, ...]]:
        return [self.children[i : i + self.columns] for i in range(0, len(self.children), self.columns)]

    def size(self) -> tuple[int, int]:
        if self.cpus:
            return CPU_WIDTH, CPU_HEIGHT * len(self.cpus)
        sizes = [[child.size() for child in row] for row in self.rows()]
        width = max((sum(w for w, _ in row) + GAP * (len(row) + 1) for row in sizes), default=0)
        height = sum(max(h for _, h in row) + GAP for row in sizes) + GAP + (TITLE if self.title else 0)
        return max(width, 7 * len(self.title) + 2 * GAP), height

    def draw(self, x: int, y: int) -> Iterable[str]:
        width, height = self.size()
        if self.cpus:
            yield f'<g><title>{escape(self.note)}</title><rect x="{x}" y="{y}" width="{width}" height="{height}" '
            yield f"fill={quoteattr(self.fill)} {_outline(self.stroke)}/>"
            for number, cpu in enumerate(self.cpus):
                middle = y + CPU_HEIGHT * number + 14
                yield f'<text x="{x + width / 2}" y="{middle}" text-anchor="middle">{cpu}</text>'
            yield "</g>"
            return
        yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" '
        yield f'fill={quoteattr(self.fill)} stroke="#888" rx="5"/>'
        if self.title:
            yield f'<text x="{x + GAP}" y="{y + 14}" fill="#333">{escape(self.title)}</text>'
        below = y + GAP + (TITLE if self.title else 0)
        for row in self.rows():
            right = x + GAP
            for child in row:
                yield from child.draw(right, below)
                right += child.size()[0] + GAP
            below += max(child.size()[1] for child in row) + GAP


def draw_plan(plan: Plan) -> str:
    """Draws a plan as an SVG document."""
    facts = plan.facts
    colours = _colours(plan.services)
    host = _Box(_host_title(facts), tuple(_packages(plan, colours)), columns=_wide(len(facts.packages or ()) or 1))
    width, height = host.size()
    legend = list(_legend(plan, colours))
    # DejaVu Sans at 12 pixels is hardly ever wider than 8 a letter.
    width = max(width, *(CPU_WIDTH + 10 + 8 * len(text) for _, text in legend))
    total = height + 24 * (len(legend) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 20}" height="{total + 20}" '
        f'viewBox="-10 -10 {width + 20} {total + 20}" font-family="DejaVu Sans, sans-serif" font-size="12">',
        f'<rect x="-10" y="-10" width="{width + 20}" height="{total + 20}" fill="#FAFAFA"/>',
        *host.draw(0, 0),
    ]
    for number, (colour, text) in enumerate(legend):
        top = height + 24 * number + 14
        parts.append(f'<rect x="0" y="{top}" width="{CPU_WIDTH}" height="16" fill="{colour}" stroke="#333" rx="3"/>')
        parts.append(f'<text x="{CPU_WIDTH + 10}" y="{top + 13}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _colours(services: Sequence[ServicePlan]) -> dict[str, str]:
    """Chooses a colour for each service that has CPUs of its own; services of one slot share theirs, and its colour."""
    colours: dict[str, str] = {}
    by_slot: dict[str, str] = {}
    for service in services:
        if not service.service.settings.enabled and not service.own:
            continue
        slot = service.service.settings.slot or service.unit
        colours[service.unit] = by_slot.setdefault(slot, PALETTE[len(by_slot) % len(PALETTE)])
    return colours


def _packages(plan: Plan, colours: dict[str, str]) -> Iterable[_Box]:
    facts = plan.facts
    packages = [(f"package {package.id}", package.cpus) for package in facts.packages or ()]
    packages = packages or [("", facts.online_cpus)]
    nodes_shown: set[int] = set()
    for title, cpus in packages:
        nodes = [node for node in facts.numa_nodes if not node.cpus.isdisjoint(cpus)]
        boxes = [_node(plan, node, cpus, colours, again=node.id in nodes_shown) for node in nodes]
        nodes_shown.update(node.id for node in nodes)
        yield _Box(title, tuple(boxes), columns=_wide(len(boxes)), fill="#FFFFFF")
    for node in facts.numa_nodes:
        if not node.cpus:
            yield _Box(_node_title(node) + ", no CPUs", fill="#FFFFFF")
    unknown = [gpu for gpu in facts.accelerators() if gpu.numa_node is None]
    if unknown:
        boxes = [_Box(_gpu_title(plan, gpu), fill="#FFFFFF") for gpu in unknown]
        yield _Box("accelerators, node unknown", tuple(boxes), columns=2, fill="#FFFFFF")


def _node(plan: Plan, node: NumaNode, within: CpuSet, colours: dict[str, str], *, again: bool) -> _Box:
    facts = plan.facts
    cpus = node.cpus & within
    groups = [group & cpus for group in facts.l3_groups or () if not group.isdisjoint(cpus)]
    rest = cpus - CpuSet.union(groups)
    boxes = [_group("L3", group, plan, colours) for group in groups]
    if rest:
        boxes.append(_group("", rest, plan, colours))
    for gpu in facts.accelerators():
        if gpu.numa_node == node.id and not again:
            boxes.append(_Box(_gpu_title(plan, gpu), fill="#FFFFFF"))
    return _Box("" if node.synthetic else _node_title(node), tuple(boxes), columns=_wide(len(boxes)), fill="#F4F8FB")


def _group(title: str, cpus: CpuSet, plan: Plan, colours: dict[str, str]) -> _Box:
    cores = [core & cpus for core in plan.facts.cores if not core.isdisjoint(cpus)]
    boxes = [_core(core, plan, colours) for core in cores]
    return _Box(title, tuple(boxes), columns=max(4, math.isqrt(2 * len(boxes))), fill="#FFFFFF")


def _core(core: CpuSet, plan: Plan, colours: dict[str, str]) -> _Box:
    cpu = core.first()
    holders = [service for service in plan.services if cpu in service.cpus]
    coloured = [colours[service.unit] for service in holders if service.unit in colours]
    # The first that is enabled; a shared service does not hide who holds the core.
    fill = coloured[0] if coloured else LEFT_OUT if cpu in plan.left_out else FREE
    exclusive = [colours[service.unit] for service in holders if service.own and service.unit in colours]
    loading = [service for service in plan.services if cpu in service.loader_cpus]
    dashed = [colours[service.unit] for service in loading if service.unit in colours]
    names = ", ".join(
        (*(service.unit for service in holders), *(f"{service.unit}'s loader workers" for service in loading))
    )
    return _Box(
        cpus=tuple(core),
        fill=exclusive[0] if exclusive else fill,
        stroke=dashed[0] if dashed else "",
        note=f"CPUs {core}: {names or plan.left_out.get(cpu, 'free')}",
    )


def _outline(loader: str) -> str:
    """Returns a thin line, or a dashed one in the colour of the service whose loader workers may run there."""
    return f'stroke="{loader}" stroke-width="3" stroke-dasharray="4 3" rx="3"' if loader else 'stroke="#333" rx="3"'


def _legend(plan: Plan, colours: dict[str, str]) -> Iterable[tuple[str, str]]:
    for service in plan.services:
        if service.unit in colours:
            threads = " + ".join(str(rank.threads) for rank in service.ranks)
            memory = f"{service.memory.policy.value} {service.memory.nodes}".strip()
            name = service.service.title
            shared = "" if service.own else ", shared"
            cores = "1 core" if service.cores == 1 else f"{service.cores} cores"
            loaders = f"; loader workers also on {service.loader_cpus} (dashed)" if service.loader_cpus else ""
            yield colours[service.unit], f"{name}: {cores}{shared}; threads {threads}; memory {memory}{loaders}"
    if plan.unassigned_cpus:
        yield FREE, f"{_cpus(plan.unassigned_cpus)}: free"
    for service in plan.services:
        if service.unit not in colours:
            name = service.service.title
            yield FREE, f"{name}: holds nothing, may run on {_cpus(service.cpus)}"
    by_reason: dict[str, list[int]] = {}
    for cpu, why in plan.left_out.items():
        by_reason.setdefault(why, []).append(cpu)
    for why, cpus in by_reason.items():
        yield LEFT_OUT, f"{_cpus(CpuSet(cpus))}: {why}"


def _cpus(cpus: CpuSet) -> str:
    return f"CPU {cpus}" if len(cpus) == 1 else f"CPUs {cpus}"


def _host_title(facts: HostFacts) -> str:
    name = f"{facts.hostname}: " if facts.hostname else ""
    return f"{name}{len(facts.cores)} cores, {len(facts.online_cpus)} CPUs{_memory(facts.memory_bytes)}"


def _node_title(node: NumaNode) -> str:
    return f"NUMA node {node.id}{_memory(node.mem_bytes)}"


def _memory(size: int | None) -> str:
    if size is None:
        return ""
    return f", {size / 2**30:.0f} GiB" if size >= 2**30 else f", {size / 2**20:.0f} MiB"


def _gpu_title(plan: Plan, gpu: PciDevice) -> str:
    holders = [s.service.title for s in plan.services for g in s.gpus if g == gpu]
    name = f"GPU {gpu.pci}" if gpu.mig is None else f"GPU {gpu.pci} MIG {gpu.mig}"
    return name + (f": {', '.join(holders)}" if holders else "")


def _wide(count: int) -> int:
    """Returns the columns that make a block of so many boxes about twice as wide as high."""
    return max(1, min(count, math.isqrt(2 * count) if count > 2 else count))
