"""The version, which stands in debian/changelog and nowhere else.

This is the file for a checkout. `make install` writes another in its place, which knows the number.
"""

from __future__ import annotations

from pathlib import Path


def version() -> str:
    """Reads the version in the changelog of this checkout, such as "0.1.0"."""
    changelog = Path(__file__).resolve().parents[3] / "debian" / "changelog"
    with changelog.open(encoding="utf-8") as file:
        return file.readline().partition("(")[2].partition(")")[0]
