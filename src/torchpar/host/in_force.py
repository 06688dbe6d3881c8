"""Reads what each service has in the generation in force, from the plan that is kept with it below the root."""

from __future__ import annotations

from torchpar.contract.paths import STORE
from torchpar.contract.typed_json import ShapeError
from torchpar.facts.topology import Held
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
