"""What the kernel says of its clock."""

from __future__ import annotations

from torchpar.host.clocks import clock_is_synchronised, read_time_of_day


def test_the_clock_is_kept_right_or_may_be_wrong_by_some_seconds() -> None:
    """The kernel corrects less than a second, and counts errors up to sixteen."""
    clock = read_time_of_day()
    if clock is None:  # as in a builder's root
        assert clock_is_synchronised() is None
        return
    assert abs(clock.offset_seconds) <= 1 and 0 <= clock.most_error_seconds <= 16
    assert clock_is_synchronised() is not None
