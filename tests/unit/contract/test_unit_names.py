"""The names of services: what people write is understood, and a unit's name leads back to its service."""

from __future__ import annotations

import pytest

from torchpar.contract.unit_names import is_called, shorten, title_of, unit_name


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
