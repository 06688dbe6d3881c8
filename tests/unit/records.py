"""Records of planned services, as a generation keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torchpar.plan.record import ServiceRecord, parse_plan


def make_record(service: Mapping[str, Any]) -> ServiceRecord:
    """The record of a service of plan_json(), of which only what matters needs to be given."""
    kind, _, name = service["unit"].removeprefix("torchpar-").removesuffix(".service").partition("@")
    rank = {"local_rank": 0, "cpus": "0", "numa_nodes": "0", "threads": 1, "loader_workers": 0}
    whole = {
        "kind": kind,
        "name": name,
        "enabled": False,
        "cpus": "0",
        "memory_policy": {"policy": "preferred", "nodes": "0", "allowed_nodes": "0"},
        "allocator": "glibc",
        "ranks": [{}],
        "environment": {},
        **service,
    }
    whole["ranks"] = [{**rank, **given} for given in whole["ranks"]]
    (record,) = parse_plan(json.dumps({"services": [whole]}))
    return record
