"""The names of services, as people and systemd have them: "train@demo" is torchpar-train@demo.service."""

from __future__ import annotations


def title_of(kind: str, name: str) -> str:
    """What people call a service: "train@demo"."""
    return f"{kind}@{name}"


def unit_name(kind: str, name: str) -> str:
    """The name of its unit."""
    return f"torchpar-{kind}@{name}.service"


def shorten(unit: str) -> str:
    """The title of the service of a unit: "train@demo" for torchpar-train@demo.service."""
    return unit.removeprefix("torchpar-").removesuffix(".service")


def is_called(kind: str, name: str, called: str) -> bool:
    """Whether a person means this service: "demo", "train@demo", or the name of its unit, with its ending or not."""
    known = (name, title_of(kind, name))
    return called in known or shorten(called) in known
