"""How an inference service answers: what it tells, and the rates that follow."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from torchpar.contract.serving import (
    Serving,
    ServingReport,
    ServingTotals,
    make_serving_json,
    parse_serving_json,
    rates,
)

FIRST = ServingTotals(time=100.0, answered=50, failed=1, waiting=9, counts=(50, 0, 0))
LAST = ServingTotals(time=110.0, answered=150, failed=6, waiting=3, counts=(148, 2, 0))
REPORT = ServingReport((0.01, 0.1), FIRST, LAST)


def test_what_is_told_is_read_as_it_was() -> None:
    """In a file that is small."""
    text = make_serving_json(REPORT)
    assert parse_serving_json(text.encode()) == REPORT and len(text) < 1000


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2}, {"bounds": [0.1]}, {"bounds": [0.1] * 64}, {"first": None},
        {"last": {**asdict(LAST), "counts": [1]}},
        {"last": {**asdict(LAST), "answered": 49}}, {"last": {**asdict(LAST), "time": float("nan")}},
        {"last": {**asdict(LAST), "waiting": -1}},
    ],
)  # fmt: skip
def test_whatever_else_stands_there_is_nothing(changes: dict[str, Any]) -> None:
    """Another version, other bounds, totals that fall."""
    data = {"version": 1, **asdict(REPORT), **changes}
    assert parse_serving_json(json.dumps(data).encode()) is None
    assert parse_serving_json(b"\xff") is parse_serving_json(b"[]") is None


def test_rates_are_of_the_time_between_totals() -> None:
    """Of an instant there are none; the queue is that of the last."""
    assert rates(REPORT, 111.0) == Serving(10.0, 0.5, 0.1, 3, 1.0)
    assert rates(replace(REPORT, last=replace(LAST, counts=(150, 0, 0))), 111.0) == Serving(10.0, 0.5, 0.01, 3, 1.0)
    assert rates(replace(REPORT, last=replace(LAST, counts=(50, 0, 100))), 111.0) == Serving(10.0, 0.5, None, 3, 1.0)
    quiet = rates(replace(REPORT, last=replace(FIRST, time=110.0)), 0.0)
    assert quiet == Serving(0.0, 0.0, None, 9, 0.0)
    assert rates(ServingReport((0.01, 0.1), FIRST, FIRST), 111.0) is None
