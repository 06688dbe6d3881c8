"""How many rows a batch should have, learned from how long batches take."""

from __future__ import annotations

import pytest

from torchpar.serve.engine.curve import Curve, measure

# A small model: more rows cost next to nothing. One whose activations leave the cache: best at 8.
FLAT = {1: 1.0, 2: 1.0, 4: 1.1, 8: 1.2, 16: 1.5, 32: 2.0, 64: 3.0}
STEEP = {1: 1.0, 2: 1.8, 4: 3.6, 8: 6.6, 16: 16.0, 32: 34.0}


def test_the_cap_is_the_smallest_batch_near_the_best_throughput() -> None:
    """Larger ones would only make requests wait."""
    assert Curve(STEEP).cap == 8
    assert Curve({**STEEP, 4: 3.4}).cap == 4
    assert Curve(FLAT).cap == 64


def test_max_batch_bounds_the_cap_also_between_powers_of_two() -> None:
    """MaxBatch=20 is kept, and used where larger batches were still better."""
    assert Curve(FLAT, most=20).cap == 20
    assert Curve(STEEP, most=20).cap == 8
    assert Curve(STEEP, most=3).cap == 3


def test_times_between_the_points_lie_on_lines() -> None:
    """And beyond the last the time per row is the last one's."""
    curve = Curve(FLAT)
    assert curve.seconds(48) == pytest.approx(2.5)
    assert curve.seconds(128) == pytest.approx(6.0)
    assert curve.seconds(0) == 1.0


def test_the_curve_follows_what_batches_take() -> None:
    """A host that is slower from now on, or was disturbed while it was measured, is learned."""
    curve = Curve(FLAT)
    for _ in range(300):
        for rows in (1, 5, 16, 40, 64):
            curve.observe(rows, 10.0 * rows)
    assert curve.seconds(16) == pytest.approx(160.0, rel=0.2)
    assert curve.seconds(40) == pytest.approx(400.0, rel=0.2)
    assert curve.cap < 64


def test_idle_workers_share_a_batch_where_that_saves_time() -> None:
    """Halves of a steep curve are half the time; of a flat one they only cost more."""
    assert Curve(STEEP).parts(32, 4) == 4
    assert Curve({1: 1.0, 64: 1.2}).parts(64, 4) == 1
    assert Curve(STEEP).parts(1, 4) == 1


def test_measuring_stops_where_more_rows_do_not_help() -> None:
    """And keeps the smallest of several times."""
    asked: list[int] = []

    def run(rows: int) -> float:
        asked.append(rows)
        return STEEP.get(rows, rows * 1.1) / 1000 + (0.5 if asked.count(rows) == 1 else 0.0) / 1000

    points = measure(run, None)
    assert points == {rows: pytest.approx(seconds / 1000) for rows, seconds in STEEP.items()}


def test_measuring_keeps_to_its_budget_and_to_max_batch() -> None:
    """A model that takes seconds is asked once."""
    asked: list[int] = []

    def slow(rows: int) -> float:
        asked.append(rows)
        return 2.0

    assert measure(slow, None) == {1: 2.0} and asked == [1]
    assert max(measure(lambda rows: 0.001, 20)) == 16


def test_a_measurement_that_was_disturbed_is_found_out() -> None:
    """Larger batches are tried now and then, where enough waits, also beyond the last that was measured."""
    true = {1: 0.001, 2: 0.0012, 4: 0.0015, 8: 0.002, 16: 0.003, 32: 0.006, 64: 0.012}
    curve = Curve({1: 0.001, 2: 0.0012, 4: 0.009})
    assert curve.cap == 2 and curve.limit(3) == 2
    for _ in range(20_000):
        rows = curve.limit(100)
        curve.observe(rows, true.get(rows, rows * 0.0002))
    assert curve.cap == 16
    bounded = Curve({1: 0.001, 2: 0.0012}, most=2)
    assert {bounded.limit(100) for _ in range(100)} == {2}
