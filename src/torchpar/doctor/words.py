"""Words amounts for the sentences of checks."""

from __future__ import annotations


def size(amount: float) -> str:
    """Words a number of bytes: "512 MiB", "3.2 GiB"."""
    for unit, bytes_each in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if amount >= bytes_each:
            return f"{rate(amount / bytes_each)} {unit}"
    return f"{amount / 2**10:.0f} KiB"


def rate(value: float) -> str:
    """Words a number with three digits, or all that it has before the point: "0.125", "43.2", "18250"."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """Words a share: "12 %"."""
    return f"{100 * part / whole:.0f} %" if whole else "0 %"
