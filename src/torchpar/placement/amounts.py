"""Counts the cores of each enabled service, by kind: what the conf asks for, then shares by weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.placement.claims import Claim, Placed, largest_remainder
from torchpar.placement.cores import Core
from torchpar.placement.usable import UsableCores


def free_cores(pool: Iterable[Core], claims: Iterable[Claim], placed: Placed | None = None) -> list[Core]:
    """Finds the cores among some that no service has for itself: by where they are `placed`, else by what they name."""
    exclusive = (claim for claim in claims if claim.exclusive())
    held = CpuSet.union(
        core.cpus for claim in exclusive for core in (claim.named if placed is None else placed.get(claim.name, ()))
    )
    return [core for core in pool if core.cpus.isdisjoint(held)]


def cores_for_all(enabled: Sequence[Claim], usable: UsableCores) -> list[Core]:
    """Returns the free cores of the pool; where services need more, those beyond the quota, the slower ones, the
    system's.

    No service is refused as long as each can have what it asks for.
    """
    free = free_cores(usable.pool, enabled)
    asking = [claim for claim in enabled if claim.request.kind in (CpuRequestKind.COUNT, CpuRequestKind.AUTO)]
    needed, counted = sum(least(claim) for claim in asking), sum(claim.request.count for claim in asking)
    for part in (usable.beyond, usable.slow, usable.spare):
        more = free_cores(part, enabled)
        # Those beyond the quota are in the order in which they are given away.
        if part is not usable.beyond:
            more.sort(key=lambda core: -core.capacity)
        # Where counts leave no faster core, the auto services have none that would wait for the slower ones.
        all_of_them = part is usable.slow and len(free) <= counted < needed
        free += more if all_of_them else more[: max(0, needed - len(free))]
    return sorted(free, key=lambda core: core.cpus.first())


def least(claim: Claim) -> int:
    """Returns the fewest cores that a claim can do with."""
    return claim.request.count or claim.ranks()


def exchangeable(usable: UsableCores, free: Sequence[Core], enabled: Sequence[Claim]) -> list[Core]:
    """Returns the cores kept for the system, where others would do as well: all are alike, and none is given away."""
    alike = usable.alike and not usable.beyond
    spare = free_cores(usable.spare, enabled)
    return spare if alike and len(spare) == len(usable.spare) and set(spare).isdisjoint(free) else []


def beyond_quota(usable: UsableCores, free: Sequence[Core], enabled: Sequence[Claim]) -> tuple[list[Core], int]:
    """Returns the cores beyond the CPU quota, which may be exchanged for others, and how many of them are given away.
    """
    beyond = free_cores(usable.beyond, enabled)
    return (beyond, len(set(beyond).intersection(free))) if len(beyond) == len(usable.beyond) else ([], 0)


@dataclass(frozen=True)
class Amount:
    """A count of cores for a claim, and the rule that gave it."""

    count: int
    why: str


def count_out(enabled: Sequence[Claim], usable: UsableCores, cores: Sequence[Core]) -> list[tuple[Claim, Amount]]:
    """Counts the free `cores` that each enabled claim gets: counts, then auto by weight (largest remainder).

    The hardest to place come first in each: those with several ranks, then the largest.
    """
    free = len(cores)
    amounts: list[tuple[Claim, Amount]] = []
    counts = [claim for claim in enabled if claim.request.kind is CpuRequestKind.COUNT]
    for claim in sorted(counts, key=lambda claim: (-claim.request.count, claim.name)):
        if claim.request.count > free:
            raise claim.lacks(too_much(claim, free, usable, enabled, amounts))
        amounts.append((claim, Amount(claim.request.count, "whole cores as asked for")))
        free -= claim.request.count
    autos = [claim for claim in enabled if claim.request.kind is CpuRequestKind.AUTO]
    if len(autos) > free:
        beyond = autos[free]
        raise beyond.lacks(too_much(beyond, 0, usable, enabled, amounts))
    least = [claim.ranks() for claim in autos]
    if sum(least) > free and len(autos) > 1:
        raise _too_many_ranks(autos, free)
    if sum(least) > free:
        least = [1] * len(autos)
    shared = any(claim.request.kind is CpuRequestKind.SHARED for claim in enabled)
    # Every enabled service gets a core; the shared ones together one that no auto service takes.
    slow = set(free_cores(usable.slow, enabled)).difference(cores)
    total = free - (1 if shared and not slow and free > sum(least) else 0)
    weights = [claim.weight for claim in autos]
    counted = largest_remainder(total, weights, least=least)
    # Equal ranks need cores on several nodes; a single process does with what they leave.
    shares = sorted(
        zip(autos, counted, strict=True),
        key=lambda pair: (not pair[0].by_node() and pair[0].ranks() == 1, -pair[1], pair[0].name),
    )
    for claim, count in shares:
        rule = f"weight {claim.weight} of {sum(weights)}" if len(autos) > 1 else "the only enabled CPUs=auto service"
        amounts.append((claim, Amount(count, f"{rule}, of {total} cores that are free")))
    return amounts


def _too_many_ranks(autos: Sequence[Claim], free: int) -> PlacementError:
    """Returns the error that ranks need more cores than are free."""
    most = max(autos, key=lambda claim: (claim.ranks(), claim.name))
    ranks = most.ranks()
    service = next(one for one in most.services if (train := one.train()) and train.ranks == ranks)
    why = f"each rank needs a core, and the {len(autos)} services with CPUs=auto have {free} together"
    return service.lacks("Ranks", ranks, why)


def too_much(
    claim: Claim,
    left: int,
    usable: UsableCores,
    enabled: Sequence[Claim],
    amounts: Sequence[tuple[Claim, Amount]] = (),
) -> str:
    """Returns the message that a claim asks for more cores than are left, and who holds the others."""
    held = {other.name: len(other.named) for other in enabled if other.named}
    held.update((other.name, amount.count) for other, amount in amounts)
    holders = [
        f"{held[other.name]} held by {other.name}" for other in enabled if other is not claim and other.name in held
    ]
    asking = claim.request.count or 1
    number = len({*usable.pool, *usable.beyond, *usable.slow, *usable.spare})
    return (
        f"it asks for {asking} {'core' if asking == 1 else 'cores'}, but {left} of the {number} "
        f"usable cores {'is' if left == 1 else 'are'} left" + (f": {', '.join(holders)}" if holders else "")
    )
