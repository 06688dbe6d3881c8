"""The names of services, as people and systemd have them: "train@demo" is torchpar-train@demo.service."""

from __future__ import annotations


def title_of(kind: str, name: str) -> str:
    """Makes the title by which people call a service: "train@demo"."""
    return f"{kind}@{name}"


def unit_name(kind: str, name: str) -> str:
    """Makes the name of a service's unit."""
    return f"torchpar-{kind}@{name}.service"


def shorten(unit: str) -> str:
    """Makes the title of a unit's service: "train@demo" for torchpar-train@demo.service."""
    return unit.removeprefix("torchpar-").removesuffix(".service")


def is_called(kind: str, name: str, called: str) -> bool:
    """Says whether a person means this service: "demo", "train@demo", or its unit's name, with its ending or not."""
    known = (name, title_of(kind, name))
    return called in known or shorten(called) in known
