"""Places services that hold nothing, on the cores that enabled services leave.

Who starts at a moment keeps away from the jobs that run at that moment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.placement.amounts import free_cores, least, too_much
from torchpar.placement.claims import Claim, Decision, Placed, Reason, Taken
from torchpar.placement.cores import Core, Cores
from torchpar.placement.give import give, need, used, warn_of_slower
from torchpar.placement.improve import fair_speeds, improve
from torchpar.placement.layout import Need, lay_out, spread
from torchpar.placement.split import by_node
from torchpar.placement.staying import is_nearly_as_good
from torchpar.placement.usable import UsableCores


def place_guests(
    claims: Sequence[Claim], placed: Placed, usable: UsableCores, taken: Taken
) -> dict[str, Decision[Cores]]:
    """Places the claims that hold nothing: shared ones, and those that are not enabled.

    They get what the enabled claims leave; at a moment those that are not enabled get of it what is not `taken`, if
    that is enough, and else are told with whom they share.
    """
    enabled = [claim for claim in claims if claim.enabled]
    free, slow = (free_cores(cores, enabled, placed) for cores in (usable.pool, usable.slow))
    held = {claim.services[0].unit: placed[claim.name] for claim in enabled if claim.exclusive()}
    holders = {unit: CpuSet.union(core.cpus for core in cores) for unit, cores in held.items()}
    sharing = [claim for claim in enabled if claim.request.kind is CpuRequestKind.SHARED]
    guests = {}
    for claim in claims:
        if claim.name in placed:
            continue
        if claim.request.kind is CpuRequestKind.SHARED:
            guests[claim.name] = _place_guest(claim, free, slow, usable)
            continue
        if taken is None:
            found = _place_guest(claim, free, slow, usable)
        else:
            others = {**holders, **{who: each.cpus for who, each in taken.items()}}
            found = _place_at_a_moment(claim, free, slow, usable, others)
        slower = warn_of_slower(claim, found.value, usable)
        guests[claim.name] = dataclasses.replace(found, warnings=(*found.warnings, *slower))
    # The processes that are due on each core.
    loads: dict[Core, Fraction] = {}
    for claim in sharing:
        cores = guests[claim.name].value
        loads.update((core, loads.get(core, Fraction()) + Fraction(least(claim), len(cores))) for core in cores)
    crowded = {core for core, load in loads.items() if load > 1}
    crowd = [claim for claim in sharing if not crowded.isdisjoint(guests[claim.name].value)]
    for claim in crowd:
        found = guests[claim.name]
        guests[claim.name] = dataclasses.replace(found, warnings=(*found.warnings, _take_turns(crowd, crowded)))
    return guests


def _take_turns(sharing: Sequence[Claim], cores: Collection[Core]) -> str:
    """Returns the warning of services that have more processes than the cores which they share."""
    names = [claim.name for claim in sharing]
    number = "1 core" if len(cores) == 1 else f"{len(cores)} cores"
    cpus = CpuSet.union(core.cpus for core in cores)
    return (
        f"{', '.join(names[:-1])} and {names[-1]} have CPUs=shared and {number} together (CPUs {cpus}): each is slower "
        "while others compute; with the same Slot= only one of them runs at a time"
    )


def _place_guest(
    claim: Claim, free: Sequence[Core], slow: Sequence[Core], usable: UsableCores
) -> Decision[Cores]:
    if claim.request.kind is CpuRequestKind.SHARED:
        offered = [*free, *slow]
        why = "what no enabled service holds"
    else:
        offered = list(free)
        why = "not enabled, so it holds nothing and gets what no enabled service holds"
    if len(offered) >= _needed(claim):
        return _give(claim, offered, why, usable)
    offered, warnings = _all_for_guest(claim, usable)
    if len(free) < len(usable.pool):
        why = "enabled services hold all the others, so it shares theirs"
        # A shared service that is not enabled, such as the demo, expects no better.
        if claim.enabled or claim.request.kind is not CpuRequestKind.SHARED:
            warnings.append(
                f"{claim.name}: enabled services leave too few cores, so it shares CPUs with them; "
                "both will be slower"
            )
    cores, reasons = _choose(claim, offered, usable, free)
    return give(claim, cores, why, reasons, warnings)


def _place_at_a_moment(
    claim: Claim, free: Sequence[Core], slow: Sequence[Core], usable: UsableCores, others: Mapping[str, CpuSet]
) -> Decision[Cores]:
    """Places a claim where none of the `others` computes, or beside them; `free` and `slow` are the cores of the pool
    and the slower ones that nobody holds."""
    busy = CpuSet.union(others.values())
    quiet, quiet_slow = ([core for core in part if core.cpus.isdisjoint(busy)] for part in (free, slow))
    why = "no enabled service holds them and no other job runs on them"
    if len(quiet) >= _needed(claim):
        return _give(claim, quiet, why, usable)
    # Beside a CPU quota that keeps back faster cores the slower ones win nothing.
    if len(quiet_slow) >= _needed(claim) and not usable.beyond:
        return _give(claim, quiet_slow, f"{why}, and too few faster ones are left", usable)
    offered, kept, warnings = list(free), quiet, list[str]()
    if len(offered) < _needed(claim):
        (offered, warnings), kept = _all_for_guest(claim, usable), list(free)
    cores, reasons = _choose(claim, offered, usable, kept)
    cpus = CpuSet.union(core.cpus for core in cores)
    who = [name for name, theirs in others.items() if not theirs.isdisjoint(cpus)]
    if who:
        why = "others run on some of them, as too few are left"
        left = _left(len(quiet), len(usable.pool), "faster core" if usable.slow else "core")
        warning = f"{left}, so {claim.name} shares CPUs with {' and '.join(who)}; all of them will be slower"
        warnings = [warning, *warnings]
    return give(claim, cores, why, reasons, warnings)


def _left(number: int, total: int, kind: str) -> str:
    return f"{number} of {total} {kind}s {'is' if number == 1 else 'are'} left" if number else f"no {kind} is left"


def _needed(claim: Claim) -> int:
    return max(1, least(claim))


def _give(claim: Claim, offered: Sequence[Core], why: str, usable: UsableCores) -> Decision[Cores]:
    cores, reasons = _choose(claim, offered, usable)
    return give(claim, cores, why, reasons)


def _choose(
    claim: Claim, offered: Sequence[Core], usable: UsableCores, quiet: Sequence[Core] = ()
) -> tuple[Cores, Sequence[Reason]]:
    """Chooses the cores that a guest gets of those offered, and says why they are others than the rules give.

    Those that are `quiet` are among them, as far as they then lie no worse together.
    """
    wanted = need(claim, claim.request.count or len(offered))
    if quiet:
        wanted = _keep(wanted, quiet, offered, usable)
    (cores,) = lay_out(offered, [wanted], usable.distance)
    cores = used(claim, cores, usable)
    return _better(claim, cores, wanted, offered, usable) if claim.request.count else (cores, ())


def _keep(wanted: Need, quiet: Sequence[Core], offered: Sequence[Core], usable: UsableCores) -> Need:
    """Returns a need that keeps quiet cores as a service does those that it has: all of them, or those of one node."""
    parts = [quiet, *by_node(quiet)]
    needs = [dataclasses.replace(wanted, held=CpuSet.union(core.cpus for core in part)) for part in parts]

    def cost(each: Need) -> tuple[tuple[int, int, int], int]:
        (cores,) = lay_out(offered, [each], usable.distance)
        return spread(cores, each.near), len(set(cores).difference(quiet))

    return min(needs, key=cost)


def _better(
    claim: Claim,
    cores: Cores,
    wanted: Need,
    offered: Sequence[Core],
    usable: UsableCores,
) -> tuple[Cores, Sequence[Reason]]:
    """Returns the cores of a guest that asks for a number: those where it stays, or of afresh where these are better.

    It holds nothing, so no core that is kept for the system is exchanged for it.
    """
    usable = dataclasses.replace(usable, spare=())
    (afresh,) = lay_out(offered, [dataclasses.replace(wanted, held=CpuSet())], usable.distance)
    improved = improve({claim.name: afresh}, [claim], offered, usable)
    afresh = used(claim, improved.placed[claim.name], usable)
    fair = fair_speeds([claim], usable)
    if not is_nearly_as_good({claim.name: cores}, {claim.name: afresh}, [claim], fair, usable.quota):
        cores = afresh
    return cores, improved.reasons.get(claim.name, ()) if set(cores) == set(afresh) else ()


def _all_for_guest(claim: Claim, usable: UsableCores) -> tuple[list[Core], list[str]]:
    """Returns the cores of the pool, whoever holds them, and as many others as a guest lacks; those kept back are the
    last, with a warning."""
    needed, offered, warnings = _needed(claim), list(usable.pool), []
    for part in (usable.beyond, usable.slow, usable.spare):
        more = sorted(part, key=lambda core: -core.capacity)[: max(0, needed - len(offered))]
        offered += more
        if more and part is not usable.slow:
            cpus = CpuSet.union(core.cpus for core in more)
            why = usable.left_out[cpus.first()].partition(" (")[0]
            warnings.append(f"{claim.who}: CPUs {cpus} are {why}, but it needs {needed} cores")
    if claim.request.count > len(offered):
        raise claim.lacks(too_much(claim, len(offered), usable, ()))
    return sorted(offered, key=lambda core: core.cpus.first()), warnings


def warn_of_guests(claims: Sequence[Claim], placed: Placed) -> dict[str, Decision[None]]:
    """Says where a service that is not enabled names the CPUs of one that is."""
    held = {cpu: claim for claim in claims if claim.exclusive() for core in placed[claim.name] for cpu in core.cpus}
    warnings = {}
    for claim in claims:
        if not claim.enabled:
            holders = {held[cpu].name: cpu for core in claim.named for cpu in core.cpus if cpu in held}
            told = [
                f"{claim.who}: CPU {cpu} is held by {name}, which is enabled; both will be slower"
                for name, cpu in holders.items()
            ]
            warnings[claim.name] = Decision(None, warnings=tuple(told))
    return warnings
