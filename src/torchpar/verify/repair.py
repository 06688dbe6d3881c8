"""Says how the threads of a unit that are on other CPUs than planned get back there without a restart."""

from __future__ import annotations

from torchpar.contract.given import Given
from torchpar.facts.running import RunningUnit
from torchpar.host.affinity import Move, UnitMove
from torchpar.plan.record import ServiceRecord
from torchpar.verify.compare import planned_sets


def make_repair(
    plan: ServiceRecord, running: RunningUnit, given: Given | None, control_group: str
) -> UnitMove | None:
    """Makes the move of all threads that have other CPUs than they may; None where there are none.

    It goes to what torchpard has given the service, or to what is planned. A thread on some of the CPUs that it may
    have stays there: as far as anybody can see the job has bound it.
    """
    found = {cpus for process in running.processes for cpus in (process.threads or {}).values()}
    planned = planned_sets(plan, given)
    wrong = {cpus for cpus in found if not any(cpus <= may for may in planned)}
    if not wrong:
        return None
    ranks = [rank.cpus for rank in given.ranks] if given else [rank.cpus for rank in plan.ranks]
    whole = given.cpus if given else plan.cpus
    return UnitMove(plan.unit, control_group, tuple(Move(wrong, cpus) for cpus in ranks), Move(wrong, whole))
