"""UnitSet × UnitSet → what differs, and which running services must restart to get it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torchpar.facts.topology import Held
from torchpar.plan.plan import Plan
from torchpar.units.drop_ins import unit_of


@dataclass(frozen=True)
class Change:
    """One unit that differs: added, removed or changed, with the old and the new text of its drop-in."""

    unit: str
    what: str  # "added", "removed", "changed", "enabled", "disabled"
    old: str
    new: str


def compare(old_files: Mapping[str, str], new_files: Mapping[str, str]) -> tuple[Change, ...]:
    """Compares two sets of rendered files (relative path → text), by unit in their order."""
    changes = []
    for path in sorted({*old_files, *new_files}):
        old, new = old_files.get(path, ""), new_files.get(path, "")
        if old != new:
            what = "changed" if old and new else "added" if new else "removed"
            changes.append(Change(unit_of(path), what, old, new))
    return tuple(changes)


def compare_links(old_links: Iterable[str], new_links: Iterable[str]) -> tuple[Change, ...]:
    """Finds the units that start at boot in one set and not in the other."""
    old, new = {unit_of(link) for link in old_links}, {unit_of(link) for link in new_links}
    return tuple(Change(unit, "enabled" if unit in new else "disabled", "", "") for unit in sorted(old ^ new))


def find_moves(in_force: Mapping[str, Held], plan: Plan) -> tuple[str, ...]:
    """Finds the services with something in force that get other CPUs or accelerators, as sentences."""
    moves = []
    for service in plan.services:
        held = in_force.get(service.unit)
        if held is None:
            continue
        gpus = tuple(gpu.name for gpu in service.gpus)
        changed = [f"from CPUs {held.cpus} to {service.cpus}"] if held.cpus != service.cpus else []
        if held.loader_cpus != service.loader_cpus:
            changed.append(f"its loaders from CPUs {held.loader_cpus or 'none'} to {service.loader_cpus or 'none'}")
        if set(held.gpus) != set(gpus):
            changed.append(f"from GPUs {' '.join(held.gpus) or 'none'} to {' '.join(gpus) or 'none'}")
        if changed:
            moves.append(f"{service.service.title} moves {' and '.join(changed)}")
    return tuple(moves)


def unified(changes: Iterable[Change]) -> Iterator[str]:
    """Yields the lines of a unified diff of the changes."""
    for change in changes:
        if change.what in ("enabled", "disabled"):
            yield f"{change.unit}: {change.what} at boot"
            continue
        yield from difflib.unified_diff(
            change.old.splitlines(),
            change.new.splitlines(),
            f"in force/{change.unit}" if change.old else "/dev/null",
            f"planned/{change.unit}" if change.new else "/dev/null",
            lineterm="",
        )
