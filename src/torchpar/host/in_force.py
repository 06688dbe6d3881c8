"""Reads what each service has in the generation in force, and what it can only be started without, below the root."""

from __future__ import annotations

from pathlib import Path

from torchpar.contract.fallback import MOST_BYTES, Fallback, parse_fallback
from torchpar.contract.paths import FALLBACK, STORE
from torchpar.contract.typed_json import ShapeError
from torchpar.facts.topology import Held
from torchpar.host.reading import NotReadableError, read_start
from torchpar.host.sysfs import Tree
from torchpar.plan.record import parse_places

_PLAN = f"{STORE}/active/plan.json".lstrip("/")
_LIMIT = 2**26  # a plan of a hundred services takes less than one MiB


def read_in_force(tree: Tree) -> dict[str, Held]:
    """Reads the CPUs and accelerators of each unit. Nothing where no generation is in force or its plan cannot be read:
    then there is nothing that could stay where it is."""
    try:
        return parse_places(tree.data(_PLAN, _LIMIT) or b"{}")
    except ShapeError:
        return {}


def read_fallback(path: str = FALLBACK) -> Fallback | None:
    """Reads what torchpard has done for services that cannot be placed as planned; None where that is nothing."""
    try:
        return parse_fallback(read_start(Path(path), MOST_BYTES))
    except (OSError, NotReadableError):
        return None


def read_without(tree: Tree) -> dict[str, int]:
    """Reads the units that systemd could not start with their CPUs or memory policy, and how their starts ended."""
    fallback = parse_fallback(tree.data(FALLBACK.lstrip("/"), MOST_BYTES) or b"")
    return fallback.without if fallback else {}
