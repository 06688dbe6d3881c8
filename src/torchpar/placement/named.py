"""Gives services the CPUs that the conf names: lists, nodes and packages.

Whoever names CPUs gets these, or a message why not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.topology import HostFacts
from torchpar.placement.claims import Claim, Decision, Placed, Reason, request_text
from torchpar.placement.cores import Cores
from torchpar.placement.usable import UsableCores


def place_named(claims: Sequence[Claim], usable: UsableCores, facts: HostFacts) -> dict[str, Decision[Cores]]:
    """Gives each claim that names CPUs what it names.

    Raises PlacementError for CPUs that are not there or may not be used, and for those that two enabled claims name.
    """
    named = [claim for claim in claims if claim.request.is_explicit()]
    placed = {claim.name: _place(claim, usable, facts) for claim in named}
    cores = {name: decision.value for name, decision in placed.items()}
    _refuse_overlap([claim for claim in named if claim.exclusive()], cores)
    return placed


def _place(claim: Claim, usable: UsableCores, facts: HostFacts) -> Decision[Cores]:
    request = claim.request
    wanted = request.numbers
    if request.kind is CpuRequestKind.NODES:
        wanted = _cpus_of({node.id: node.cpus for node in facts.numa_nodes}, claim, "NUMA node")
    elif request.kind is CpuRequestKind.PACKAGES:
        wanted = _cpus_of({package.id: package.cpus for package in facts.packages or ()}, claim, "package")
    named = CpuSet.union(core.cpus for core in usable.named)
    if request.kind is not CpuRequestKind.LIST:
        wanted = wanted & named
    missing = wanted - named
    if missing or not wanted:
        raise claim.refuse(_why_missing(missing, facts, usable))
    cores = []
    for core in usable.named:
        cpus = core.cpus & wanted
        if cpus:
            cores.append(dataclasses.replace(core, cpus=cpus))
    return Decision(tuple(cores), (Reason("CPUs", str(wanted), f"named by CPUs={request_text(request)}"),))


def _cpus_of(places: dict[int, CpuSet], claim: Claim, what: str) -> CpuSet:
    for number in claim.request.numbers:
        if not places.get(number):
            having = CpuSet(number for number, cpus in places.items() if cpus)
            state = "has no CPUs" if number in places else "does not exist on this host"
            raise claim.refuse(f"{what} {number} {state}; those with CPUs are {having}")
    return CpuSet.union(places[number] for number in claim.request.numbers)


def _why_missing(missing: CpuSet, facts: HostFacts, usable: UsableCores) -> str:
    if not missing:
        return "none of their CPUs may be used"
    offline = missing & facts.offline_cpus
    if offline:
        return f"CPU {offline} is offline; bring it online or name others (online: {facts.online_cpus})"
    absent = missing - facts.online_cpus
    if absent:
        return f"this host has no CPU {absent} (online: {facts.online_cpus})"
    return f"CPU {missing} may not be used: {usable.left_out.get(missing.first(), 'not allowed')}"


def _refuse_overlap(claims: Sequence[Claim], placed: Placed) -> None:
    holder: dict[int, Claim] = {}
    for claim in claims:
        for core in placed[claim.name]:
            for cpu in core.cpus:
                other = holder.setdefault(cpu, claim)
                if other is not claim:
                    raise claim.refuse(
                        f"CPU {cpu} is also named by {other.who}; "
                        "give each its own CPUs, or the same Slot= if they take turns"
                    )
