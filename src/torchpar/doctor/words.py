"""Words amounts for the sentences of checks."""

from __future__ import annotations


def size(amount: float) -> str:
    """Words a number of bytes: "512 MiB", "3.2 GiB"."""
    for unit, bytes_each in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if amount >= bytes_each:
            return f"{amount / bytes_each:.3g} {unit}"
    return f"{amount / 2**10:.0f} KiB"


def share(part: float, whole: float) -> str:
    """Words a share: "12 %"."""
    return f"{100 * part / whole:.0f} %" if whole else "0 %"
