"""Says how long something takes, or is ago, in one unit that a person takes in at a glance."""

from __future__ import annotations

# From two of the next unit on that one is used.
_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))


def span(seconds: float) -> str:
    """Words a span of time: "40 ms", "90 s", "4 min", "3 h", "2 days".

    >>> span(5400)
    '90 min'
    """
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
