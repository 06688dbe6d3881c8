"""The picture of a plan: every CPU once, in the colour of who gets it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tests.unit.hosts import make_host, make_hybrid_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.facts.topology import HostFacts
from torchpar.plan.picture import FREE, LEFT_OUT, PALETTE, draw_plan
from torchpar.plan.plan import Plan, make_plan

SVG = "{http://www.w3.org/2000/svg}"
CONF = "[Train a]\nScript=/a.py\nEnabled=yes\nCPUs=2\n[Train b]\nScript=/b.py\nEnabled=yes\n"


def plan_of(facts: HostFacts, text: str = CONF) -> Plan:
    """The plan of two enabled services."""
    return make_plan(parse_config([ConfFile("/c", text)], facts), facts)


def cells(svg: str) -> dict[int, str]:
    """The colour of each CPU's core."""
    found: dict[int, str] = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        for text in group.iter(f"{SVG}text"):
            cpu = int(text.text or "")
            assert cpu not in found
            found[cpu] = rect.get("fill") or ""
    return found


@pytest.mark.parametrize(
    "facts",
    [
        make_host(cores_per_complex=2),
        make_host(packages=2, nodes_per_package=2, complexes_per_node=2, smt=2),
        make_hybrid_host(),
        make_host(packages=8, nodes_per_package=4, cores_per_complex=8, smt=2, gpu_nodes=(0, None)),
    ],
    ids=["2", "64", "hybrid", "512"],
)
def test_every_cpu_is_drawn_once_in_the_colour_of_its_service(facts: HostFacts) -> None:
    """From 2 to 512 CPUs."""
    text = CONF.replace("CPUs=2\n", "") if len(facts.cores) == 2 else CONF
    plan = plan_of(facts, text)
    drawn = cells(draw_plan(plan))
    assert set(drawn) == set(facts.online_cpus)
    a, b = plan.services
    for cpu, colour in drawn.items():
        expected = PALETTE[0] if cpu in a.cpus else PALETTE[1] if cpu in b.cpus else LEFT_OUT
        assert colour == expected


def test_nothing_is_drawn_outside_of_the_picture() -> None:
    """The size of the document is that of what is in it."""
    root = ET.fromstring(draw_plan(plan_of(make_host(packages=2, smt=2, cores_per_complex=9))))
    width, height = float(root.get("width") or 0), float(root.get("height") or 0)
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x") or 0) + float(rect.get("width") or 0) <= width - 10
        assert float(rect.get("y") or 0) + float(rect.get("height") or 0) <= height - 10


def test_free_cores_are_white_and_guests_are_named_in_the_legend() -> None:
    """A service that holds nothing has no colour."""
    plan = plan_of(
        make_host(),
        "[Host]\nReserveCores=0\n[Train a]\nScript=/a\nCPUs=2\nEnabled=yes\n[Train c]\nScript=/c\nCPUs=shared\n",
    )
    svg = draw_plan(plan)
    assert list(cells(svg).values()) == [PALETTE[0], PALETTE[0], FREE, FREE]
    assert "CPUs 2-3: free" in svg and "train@c: holds nothing, may run on CPUs 2-3" in svg


def test_the_cores_of_loader_workers_have_a_dashed_outline_in_the_colour_of_their_service() -> None:
    """They are filled as what no service computes on; one is kept for the system."""
    svg = draw_plan(plan_of(make_hybrid_host(), "[Train a]\nScript=/a\nEnabled=yes\n"))
    dashed = [rect.get("stroke") for rect in ET.fromstring(svg).iter(f"{SVG}rect") if rect.get("stroke-dasharray")]
    assert dashed == [PALETTE[0]] * 3
    assert "loader workers also on 9-11 (dashed)" in svg
