"""What differs between two sets of units, and who moves between two plans."""

from __future__ import annotations

from torchpar.changes import Change, compare, compare_links, find_moves, unified

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
    """With the CPUs that it had and the CPUs that it gets."""

    def plan(**cpus: str) -> dict[str, object]:
        return {"services": [{"unit": n, "kind": "train", "name": n, "cpus": c} for n, c in cpus.items()]}

    assert find_moves(plan(a="0", b="1"), plan(a="0", b="2-3", c="1")) == ("train@b moves from CPUs 1 to 2-3",)
