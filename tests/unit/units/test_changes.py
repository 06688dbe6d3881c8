"""What differs between two sets of units, and who moves between two plans."""

from __future__ import annotations

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import Held
from torchpar.plan.plan import make_plan
from torchpar.units.changes import Change, compare, compare_links, find_moves, unified

PATH = "torchpar-train@{}.service.d/20-torchpar.conf"


def test_units_are_added_removed_and_changed() -> None:
    """In the order of their names; the same text is no change."""
    old = {PATH.format("a"): "1\n", PATH.format("b"): "1\n", PATH.format("d"): "1\n"}
    new = {PATH.format("a"): "2\n", PATH.format("c"): "1\n", PATH.format("d"): "1\n"}
    assert [(change.unit, change.what) for change in compare(old, new)] == [
        ("torchpar-train@a.service", "changed"),
        ("torchpar-train@b.service", "removed"),
        ("torchpar-train@c.service", "added"),
    ]


def test_what_starts_at_boot_is_compared_too() -> None:
    """Enabled=yes is a link, and no line in the drop-in."""
    link = "torchpar.target.wants/torchpar-train@{}.service"
    changes = compare_links([link.format("a")], [link.format("b")])
    assert [(change.unit, change.what) for change in changes] == [
        ("torchpar-train@a.service", "disabled"),
        ("torchpar-train@b.service", "enabled"),
    ]


def test_a_diff_reads_like_one() -> None:
    """Unit by unit, with what has no text in words."""
    lines = list(unified([Change("x.service", "changed", "A=1\n", "A=2\n"), Change("y.service", "enabled", "", "")]))
    assert lines[:2] == ["--- in force/x.service", "+++ planned/x.service"]
    assert lines[-3:] == ["-A=1", "+A=2", "y.service: enabled at boot"]


def test_who_moves_is_named_and_who_is_new_does_not() -> None:
    """With the CPUs and accelerators that it had, and those that it gets."""
    text = "[Host]\nReserveCores=0\n" + "".join(f"[Train {name}]\nScript=/s\nEnabled=yes\n" for name in "abc")
    host = make_host(gpu_nodes=(0,))
    plan = make_plan(parse_config([ConfFile("/c", text)], host), host)
    unit = {name: f"torchpar-train@{name}.service" for name in "abx"}
    gpu = "0000:10:00.0"
    held = {
        unit["a"]: Held(plan.find(unit["a"]).cpus, (gpu,)),
        unit["b"]: Held(CpuSet([7]), (gpu,)),
        unit["x"]: Held(CpuSet([0])),
    }
    assert find_moves(held, plan) == (f"train@b moves from CPUs 7 to 2 and from GPUs {gpu} to none",)
