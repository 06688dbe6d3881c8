"""What several processes have answered and use, as one."""

from __future__ import annotations

from torchpar.serve.usage import add_usage, past_usage, read_usage


def test_of_this_process() -> None:
    """Answers by status, and what it uses now."""
    usage = read_usage({404: 1, 200: 3}, 2, 5, 1000)
    assert list(usage)[:2] == ["answers 200", "answers 404"]
    assert usage["answers 200"] == 3 and usage["connections"] == 5 and usage["held_bytes"] == 1000
    assert usage["resident_bytes"] > 1 << 20 and usage["cpu_seconds"] > 0


def test_sums_have_whatever_one_of_them_has() -> None:
    assert add_usage([{"answers 200": 3, "refused": 1}, {"answers 503": 2, "refused": 1}, {}]) == {
        "answers 200": 3,
        "answers 503": 2,
        "refused": 2,
    }


def test_a_process_that_has_ended_has_no_connections_and_no_memory() -> None:
    """What it has counted stays counted."""
    usage = read_usage({200: 3}, 2, 5, 1000)
    gone = {"connections": 0, "held_bytes": 0, "resident_bytes": 0}
    assert past_usage(usage) == {"answers 200": 3, "refused": 2, "cpu_seconds": usage["cpu_seconds"], **gone}
