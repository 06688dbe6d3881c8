"""Says how the threads of a unit that are on other CPUs than planned get back there without a restart."""

from __future__ import annotations

from collections.abc import Sequence

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank
from torchpar.facts.running import RunningUnit
from torchpar.host.affinity import Move, UnitMove
from torchpar.plan.record import RankRecord, ServiceRecord
from torchpar.verify.compare import planned_sets, ranks_of


def make_repair(
    plan: ServiceRecord,
    running: RunningUnit,
    given: Given | None,
    control_group: str,
    before: ServiceRecord | None = None,
) -> UnitMove | None:
    """Makes the move of all threads that have other CPUs than they may; None where there are none.

    It goes to what torchpard has given the service, or to what is planned, as far as that is online. A thread on some
    of the CPUs that it may have stays there: as far as anybody can see the job has bound it; unless
    these are what it had by the plan `before`.
    """
    if given and len(given.ranks) != len(plan.ranks):
        return None  # it runs with an older plan, by which torchpard moves it
    ranks = ranks_of(plan, running)
    found = {cpus for process in running.processes for cpus in (process.threads or {}).values()}
    parts: Sequence[GivenRank | RankRecord] = given.ranks if given else plan.ranks
    whole = given.cpus if given else plan.cpus

    def wrong(local_rank: int | None) -> set[CpuSet]:
        to = whole if local_rank is None else parts[local_rank].cpus
        planned = planned_sets(plan, given, local_rank)
        had = planned_sets(before, None, local_rank) if before and not given else set()
        outside = {cpus for cpus in found if cpus in had - planned or not any(cpus <= may for may in planned)}
        return outside if running.online(to) else set()

    if not any(
        wrong(ranks.get(process.pid)) & {*(process.threads or {}).values()} for process in running.processes
    ):
        return None
    known = set(ranks.values())
    moves = tuple(Move(wrong(number if number in known else None), part.cpus) for number, part in enumerate(parts))
    allowed = (plan.cpuset - plan.cpus) | given.cpus if given else plan.cpuset
    return UnitMove(plan.unit, control_group, moves, Move(wrong(None), whole), allowed)
