"""Conf and facts to what a generation is made of: the placement, the plan and the units, in one view."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container

from torchpar.contract.errors import PlacementError
from torchpar.generations.generation import Content
from torchpar.plan.inputs import Inputs
from torchpar.plan.plan import Plan, make_plan, plan_json
from torchpar.units.drop_ins import make_refusal, make_units


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The plan of a conf on this host, the content of its generation, and the warnings."""

    plan: Plan
    content: Content
    warnings: tuple[str, ...]


def compile_conf(inputs: Inputs) -> Compiled:
    """Compiles a conf for a host: its plan, its units, its warnings. Raises PlacementError."""
    plan = make_plan(inputs.config, inputs.facts)
    units = make_units(plan)
    text = json.dumps(plan_json(plan), indent=1) + "\n"
    content = Content(units.files, units.links, text, inputs.files, dict(inputs.manifest))
    return Compiled(plan, content, (*inputs.unreachable(), *plan.warnings, *units.warnings))


def compile_as_applied(inputs: Inputs) -> Compiled:
    """Compiles a conf that was in force for the host as it is now; leaves out and names a service that no longer fits.

    One service that asks for a CPU that is gone does not keep the others from starting. Raises PlacementError.
    """
    # A start would be refused, too; and one service keeps no other from starting.
    left_out = {unit: "; ".join(map(str, problems)) for unit, problems in inputs.refusals().items()}
    inputs = _without(inputs, left_out)
    while True:
        try:
            compiled = compile_conf(inputs)
        except PlacementError as error:
            if error.unit not in {service.unit for service in inputs.config.services}:
                raise
            left_out[error.unit or ""] = str(error)
            inputs = _without(inputs, left_out)
        else:
            refusals = {path: text for unit, why in left_out.items() for path, text in make_refusal(unit, why).items()}
            content = dataclasses.replace(compiled.content, files={**compiled.content.files, **refusals})
            warnings = [f"{why}; it cannot start until this is mended" for why in left_out.values()]
            return Compiled(compiled.plan, content, (*warnings, *compiled.warnings))


def _without(inputs: Inputs, units: Container[str]) -> Inputs:
    services = tuple(service for service in inputs.config.services if service.unit not in units)
    return dataclasses.replace(inputs, config=dataclasses.replace(inputs.config, services=services))
