"""Exported facts: what is none of a machine is refused by its field."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from tests.unit.hosts import make_gpu, make_host, make_hybrid_host
from torchpar.contract.errors import FactsError
from torchpar.facts.topology import facts_json, parse_facts


@pytest.mark.parametrize("capacity", ["0", "-1", "1.5", "1e300", "NaN", "Infinity", "true", '"fast"', "null"])
def test_a_kind_of_cpus_computes_at_most_as_fast_as_the_fastest(capacity: str) -> None:
    """Placement counts with it."""
    exported = facts_json(make_hybrid_host())
    exported["cpu_kinds"][0]["capacity"] = json.loads(capacity)
    with pytest.raises(FactsError, match=re.escape("cpu_kinds[0].capacity")):
        parse_facts(exported)


def test_facts_without_the_speed_of_a_kind_are_to_be_exported_again() -> None:
    """Those of before had no number."""
    exported = facts_json(make_hybrid_host())
    del exported["cpu_kinds"][0]["capacity"]
    with pytest.raises(FactsError, match="field 'capacity' is missing; export the facts again: torchpar facts"):
        parse_facts(exported)


@pytest.mark.parametrize("twice", ["device", "instance"])
def test_two_accelerators_have_two_names(twice: str) -> None:
    """Placement gives each out once, by its name."""
    gpu = make_gpu(0, 0)
    gpus = (gpu, gpu) if twice == "device" else (dataclasses.replace(gpu, uuid="GPU-1", mig_instances=("1/0", "1/0")),)
    exported = facts_json(dataclasses.replace(make_host(), gpus=gpus))
    with pytest.raises(FactsError, match="gpus: has an accelerator twice; export the facts again: torchpar facts"):
        parse_facts(exported)
