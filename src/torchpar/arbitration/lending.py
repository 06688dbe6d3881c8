"""Lends the CPUs of services that have no use for them to services that run: whole cores, and never a needed one.

Whoever is lent something keeps all that it has without it. What it gets is near its own, on the same NUMA nodes; cores
of other nodes are worth it only where there are many, as a process across nodes is slower. Equal ranks get equally
much, as they wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torchpar.arbitration.divide import Claim, Part, Tenant, TenantRank, divide_pools
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank, Loan
from torchpar.facts.topology import HostFacts
from torchpar.placement.quality import ACROSS_NODES


def lend(
    running: Iterable[Tenant], stopped: Iterable[Tenant], parts: Mapping[str, Part], facts: HostFacts
) -> dict[str, Part]:
    """Adds to the parts of services that run what they are lent; services that lend or borrow have a part, too.

    `stopped` are the services in force that do not run, and `parts` what `divide` has given.
    """
    tenants = sorted(running, key=lambda tenant: tenant.unit)
    had = {tenant.unit: parts.get(tenant.unit) or Part(_planned(tenant)) for tenant in tenants}
    offers = _offers(tenants, sorted(stopped, key=lambda tenant: tenant.unit), had, facts)
    borrowers = [tenant for tenant in tenants if tenant.borrows and not tenant.idle]
    extra = _divide(borrowers, offers, had, facts)
    found = {unit: had[unit] for unit in parts} | {one.unit: had[one.unit] for one in tenants if one.waits}
    lent: dict[str, tuple[str, ...]] = {}
    for tenant in borrowers:
        own = had[tenant.unit].ranks
        ranks = _add(tenant, own, extra.get(tenant.unit, CpuSet()), facts)
        got = CpuSet.union(rank.cpus for rank in ranks) - CpuSet.union(rank.cpus for rank in own)
        if got:
            loans = tuple(Loan(unit, cpus & got) for unit, cpus in offers.items() if not got.isdisjoint(cpus))
            found[tenant.unit] = replace(had[tenant.unit], ranks=ranks, own=own, loans=loans)
            for loan in loans:
                lent[loan.unit] = (*lent.get(loan.unit, ()), tenant.unit)
    return {unit: replace(part, lent_to=lent.get(unit, ())) for unit, part in found.items()}


def take_back(given: Given, units: Collection[str]) -> Given:
    """Returns what a service has without the CPUs of these owners, which need them."""
    loans = tuple(loan for loan in given.loans if loan.unit not in units)
    if loans == given.loans:
        return given
    gone = CpuSet.union(loan.cpus for loan in given.loans if loan.unit in units)
    ranks = tuple(_without(rank, own, gone) for rank, own in zip(given.ranks, given.own, strict=True))
    return replace(given, ranks=ranks, own=given.own if loans else (), loans=loans)


def _without(rank: GivenRank, own: GivenRank, gone: CpuSet) -> GivenRank:
    cpus = rank.cpus - (gone - own.cpus)
    return own if cpus == own.cpus else GivenRank(cpus, max(own.threads, rank.threads * len(cpus) // len(rank.cpus)))


def _planned(tenant: Tenant) -> tuple[GivenRank, ...]:
    return tuple(GivenRank(rank.cpus, rank.threads) for rank in tenant.ranks)


def _offers(
    running: Sequence[Tenant], stopped: Sequence[Tenant], had: Mapping[str, Part], facts: HostFacts
) -> dict[str, CpuSet]:
    """Returns the whole cores that each owner has no use for, and that nobody else has or may have at any time."""
    idle = [tenant for tenant in running if tenant.lends and tenant.idle]
    busy = [rank.cpus for tenant in running if tenant not in idle for rank in had[tenant.unit].ranks]
    # Whoever is enabled and lends nothing waits for nobody when it starts.
    taken = CpuSet.union((*busy, *(tenant.cpus for tenant in stopped if tenant.keeps and not tenant.lends)))
    usable = [core for core in facts.cores if core.isdisjoint(facts.isolated_cpus)]
    offers = {}
    owners = [(tenant.unit, CpuSet.union(rank.cpus for rank in had[tenant.unit].ranks)) for tenant in idle]
    owners += [(tenant.unit, tenant.cpus) for tenant in stopped if tenant.lends]
    for unit, cpus in owners:
        free = cpus - taken
        offers[unit] = CpuSet.union(core for core in usable if core <= free)
        taken |= offers[unit]
    return offers


def _divide(
    borrowers: Sequence[Tenant], offers: Mapping[str, CpuSet], had: Mapping[str, Part], facts: HostFacts
) -> dict[str, CpuSet]:
    """Divides what is offered, by weight and by the rules of placement; no two get the same core."""
    claims = []
    for tenant in borrowers:
        # Not its own, if it is an owner, too.
        pool = CpuSet.union(cpus for unit, cpus in offers.items() if unit != tenant.unit) & tenant.allowed
        pool = CpuSet.union(core for core in facts.cores if core <= pool)
        own = CpuSet.union(rank.cpus for rank in had[tenant.unit].ranks)
        pool = _worth(len(tenant.ranks), own, pool - own, facts)
        if pool:
            claims.append(Claim(tenant.unit, pool, pool, tenant.weight, tenant.gpus, tenant.held & pool))
    got = divide_pools(claims, facts) if claims else {}
    taken, found = CpuSet(), {}
    for claim in sorted(claims, key=lambda claim: (-claim.weight, claim.name)):
        # Where there are more services than cores, one has it.
        found[claim.name] = got[claim.name] - taken
        taken |= got[claim.name]
    return found


def _worth(ranks: int, own: CpuSet, pool: CpuSet, facts: HostFacts) -> CpuSet:
    """Returns what of the pool makes a service with these CPUs faster."""
    nodes = facts.node_of(own)
    near = pool & CpuSet.union(node.cpus for node in facts.numa_nodes if node.id in nodes)
    if pool == near or (ranks == 1 and len(nodes) > 1):
        return pool
    if ranks > 1:
        return near
    whole, part = (sum(not core.isdisjoint(own | cpus) for core in facts.cores) for cpus in (pool, near))
    return pool if ACROSS_NODES * whole > part else near


def _add(tenant: Tenant, own: Sequence[GivenRank], extra: CpuSet, facts: HostFacts) -> tuple[GivenRank, ...]:
    """Returns the ranks with their parts of what a service is lent, in which each gets a core after the other."""
    extra = _worth(len(own), CpuSet.union(rank.cpus for rank in own), extra, facts)
    cores = [core for core in facts.cores if core <= extra]
    pieces = [CpuSet()] * len(own)
    while cores:
        round_of = []
        left = list(cores)
        for rank in own:
            near = facts.node_of(rank.cpus)
            core = next((core for core in left if facts.node_of(core) <= near or len(own) == 1), None)
            if core is not None:
                left.remove(core)
            round_of.append(core or CpuSet())
        if not any(round_of) or (tenant.equal_ranks and not all(round_of)):
            break
        pieces = [piece | core for piece, core in zip(pieces, round_of, strict=True)]
        cores = left
    return tuple(
        GivenRank(rank.cpus | piece, _threads(planned, rank, rank.cpus | piece)) if piece else rank
        for planned, rank, piece in zip(tenant.ranks, own, pieces, strict=True)
    )


def _threads(planned: TenantRank, own: GivenRank, cpus: CpuSet) -> int:
    """Returns the compute threads of a rank on more CPUs: in proportion, with room for its loader workers."""
    if planned.loader_workers and planned.budget:
        return max(own.threads, planned.budget * len(cpus) // len(planned.cpus) - planned.loader_workers)
    return max(own.threads, planned.threads * len(cpus) // len(planned.cpus))
