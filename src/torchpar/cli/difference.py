"""What the conf means now against what is in force: what `diff` shows and `check` tells by its exit status."""

from __future__ import annotations

from pathlib import Path

from torchpar.cli.inputs import load
from torchpar.cli.output import warn
from torchpar.generations.store import Store
from torchpar.plan.plan import make_plan
from torchpar.units.changes import Change, compare, compare_links
from torchpar.units.drop_ins import make_units


def find_changes(conf_file: Path | None) -> tuple[Change, ...]:
    """The changes that `torchpar apply` would make; `conf_file` replaces the conf.

    Raises ConfigError, PlacementError and StoreError.
    """
    inputs = load(conf_file=conf_file)
    plan = make_plan(inputs.config, inputs.facts)
    units = make_units(plan)
    warn((*plan.warnings, *units.warnings))
    active = Store().active()
    if active is None:
        return compare({}, units.files) + compare_links({}, units.links)
    content = active.read()
    return compare(content.files, units.files) + compare_links(content.links, units.links)
