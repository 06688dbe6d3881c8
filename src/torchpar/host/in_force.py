"""What each service has in the generation in force, by the plan that is kept with it below the root."""

from __future__ import annotations

import json
from typing import Any

from torchpar.cpuset import CpuSet
from torchpar.host.sysfs import Tree
from torchpar.topology import Held

_PLAN = "var/lib/torchpar/active/plan.json"
_LIMIT = 2**26  # a plan of a hundred services takes less than one MiB


def read_in_force(tree: Tree) -> dict[str, Held]:
    """The CPUs and accelerators of each unit. Nothing where no generation is in force or its plan cannot be read:
    then there is nothing that could stay where it is."""
    data = tree.data(_PLAN, _LIMIT)
    try:
        services = json.loads(data or b"{}").get("services", [])
        return {service["unit"]: _held(service) for service in services}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _held(service: dict[str, Any]) -> Held:
    gpus = tuple(str(gpu) for gpu in service["gpus"])
    return Held(CpuSet.parse(service["cpus"]), gpus, CpuSet.parse(service.get("loader_cpus", "")))
