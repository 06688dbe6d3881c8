"""The names of services: what people write is understood, and a unit's name leads back to its service."""

from __future__ import annotations

import pytest

from torchpar.contract.unit_names import is_called, no_such_service, shorten, title_of, unit_name


@pytest.mark.parametrize(
    "called", ["a.b@c", "train@a.b@c", "torchpar-train@a.b@c", "torchpar-train@a.b@c.service"]
)
def test_all_ways_to_name_a_service_mean_it(called: str) -> None:
    """A name may have dots and @ in it."""
    assert is_called("train", "a.b@c", called) and not is_called("train", "b", called)
    assert is_called("infer", "a.b@c", called) == (called == "a.b@c")


def test_a_name_that_looks_like_a_units_is_a_name() -> None:
    """Nothing keeps a service from being called so."""
    assert is_called("train", "torchpar-x", "torchpar-x") and is_called("train", "x.service", "x.service")


def test_a_units_name_leads_back_to_its_service() -> None:
    """So that what systemd says of a unit can be told of the service."""
    assert unit_name("infer", "web") == "torchpar-infer@web.service"
    assert shorten(unit_name("infer", "web")) == title_of("infer", "web") == "infer@web"


@pytest.mark.parametrize(
    ("called", "near"),
    [
        ("dmeo", "train@demo"),
        ("train@dmeo", "train@demo"),
        ("torchpar-train@dmeo.service", "train@demo"),
        ("infer@demo", "train@demo"),
        ("WEBB", "infer@web"),
        ("nothing-like-it", ""),
        ("", ""),
        ("x" * 10**6, ""),
    ],
)
def test_a_mistyped_name_is_told_with_the_nearest(called: str, near: str) -> None:
    """It is a mistake of whoever typed it, not of the conf: exit status 64. However long it is, the line is short."""
    error = no_such_service(called, "in force", ["train@demo", "infer@web"])
    assert error.exit_status == 64 and len(str(error)) < 200
    assert str(error).partition("; ")[2] == (f"did you mean {near}?" if near else "")


def test_a_mistyped_name_is_escaped() -> None:
    """It may come from a script that took it from a file."""
    assert str(no_such_service("a\x1b[2J\n", "in force", [])) == r"no service 'a\x1b[2J\n' in force"
