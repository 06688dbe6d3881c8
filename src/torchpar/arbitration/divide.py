"""Divides the CPUs of services that run and share some: by weight, along cores, by the rules of placement.

An enabled service has its CPUs for itself, and is never moved. Each of the others stays within the CPUs that are
planned for it: there its memory is, and its control group lets it run nowhere else; and each of its ranks within its
own, where all of them then have as much: the ranks of a job wait for each other, which inference processes do not. So
those are divided that several are planned on, cell by cell: a cell is the cores on which the same may run.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torchpar.conf.services import Config, Kind, Service
from torchpar.conf.settings import HostSettings, TrainSettings
from torchpar.conf.values import GpuRequest
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import Place, PlacementError
from torchpar.contract.given import GivenRank, Loan
from torchpar.facts.topology import Held, HostFacts
from torchpar.placement.place import place

# Weights of placement are whole numbers: what services still need of a cell, in thousandths of a core.
_SCALE = 1000


@dataclass(frozen=True)
class TenantRank:
    """One process of a service as planned: its CPUs, threads, loader workers, and how many these may be together
    (`budget`, 0: unknown)."""

    cpus: CpuSet
    threads: int
    loader_workers: int = 0
    budget: int = 0


@dataclass(frozen=True)
class Tenant:
    """A service that runs, or is about to. `keeps`: it has its CPUs for itself; `stays`: it is never moved.

    `fixed_threads`: the conf has a number of threads, which stays. `equal_ranks`: they wait for each other, so each
    needs as much as the others. `lends`: others may have its CPUs while it does not run or is `idle`;
    `borrows`: it may have those of others that its control group allows (`allowed`). `gpus` are the names of its
    accelerators, and `held` the CPUs that it has now: there its memory is, so it keeps as many of them as it can.
    """

    unit: str
    ranks: tuple[TenantRank, ...]
    weight: int = 100
    keeps: bool = False
    stays: bool = False
    fixed_threads: bool = False
    equal_ranks: bool = True
    lends: bool = False
    borrows: bool = False
    idle: bool = False
    allowed: CpuSet = CpuSet()
    gpus: tuple[str, ...] = ()
    held: CpuSet = CpuSet()

    @property
    def cpus(self) -> CpuSet:
        """All CPUs that are planned for it."""
        return CpuSet.union(rank.cpus for rank in self.ranks)

    @property
    def waits(self) -> bool:
        """Says whether it waits at its start: it, or others with its CPUs, may have others than planned."""
        return not self.stays or self.lends or self.borrows


@dataclass(frozen=True)
class Part:
    """The CPUs that a service gets for now, by rank, and the units that it shares the planned ones with.

    `own`, `loans` and `lent_to`, of units, are as in Given.
    """

    ranks: tuple[GivenRank, ...]
    beside: tuple[str, ...] = ()
    own: tuple[GivenRank, ...] = ()
    loans: tuple[Loan, ...] = ()
    lent_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """Ranks that are given CPUs together: the `planned` ones, and of these what is nobody's own (`pool`)."""

    name: str
    planned: CpuSet
    pool: CpuSet
    weight: float
    gpus: tuple[str, ...]
    held: CpuSet


def divide(tenants: Iterable[Tenant], facts: HostFacts) -> dict[str, Part]:
    """Divides the CPUs among the services that run; those that stay are left out. The order does not matter."""
    tenants = sorted(tenants, key=lambda tenant: tenant.unit)
    kept = CpuSet.union(tenant.cpus for tenant in tenants if tenant.keeps)
    guests = [tenant for tenant in tenants if not tenant.keeps]
    got = _divide_guests(guests, kept, facts)
    parts = {}
    for guest in (guest for guest in guests if not guest.stays):
        beside = tuple(other.unit for other in tenants if other is not guest and not other.cpus.isdisjoint(guest.cpus))
        parts[guest.unit] = Part(_split(guest, got[guest.unit], facts), beside)
    return parts


def _divide_guests(guests: Sequence[Tenant], kept: CpuSet, facts: HostFacts) -> dict[str, dict[CpuSet, CpuSet]]:
    """Returns what each guest gets, by the CPUs that are planned for ranks of it, or for all of them together."""
    together: set[str] = set()
    while True:
        claims = {guest.unit: _make_claims(guest, kept, facts, apart=guest.unit not in together) for guest in guests}
        got = divide_pools([claim for some in claims.values() for claim in some if claim.pool], facts)
        equal = {guest.unit for guest in guests if guest.equal_ranks}
        unfit = {
            unit
            for unit, some in claims.items()
            if len(some) > 1 and not _fits(some, got, facts, equal=unit in equal)
        }
        if not unfit:
            # Whoever is planned on nothing but CPUs of enabled services shares them, as planned and warned of.
            return {
                unit: {claim.planned: got.get(claim.name) or claim.planned for claim in some}
                for unit, some in claims.items()
            }
        together |= unfit


def _make_claims(guest: Tenant, kept: CpuSet, facts: HostFacts, *, apart: bool) -> list[Claim]:
    """Makes a claim of the ranks that are planned on the same CPUs, or one of all."""
    counts = Counter(rank.cpus for rank in guest.ranks) if apart else {guest.cpus: len(guest.ranks)}
    return [
        Claim(
            name=f"{guest.unit}/{number}",
            planned=cpus,
            pool=_whole_cores(cpus, kept, facts),
            weight=guest.weight * count / len(guest.ranks),
            # Where several have CPUs of their own, these are near accelerators already.
            gpus=guest.gpus if len(counts) == 1 else (),
            held=guest.held & cpus,
        )
        for number, (cpus, count) in enumerate(counts.items())
    ]


def _fits(claims: Sequence[Claim], got: Mapping[str, CpuSet], facts: HostFacts, *, equal: bool) -> bool:
    """Says whether claims of one guest have parts, equal ones but for a core, and no core that another has, too."""
    sizes = [sum(not core.isdisjoint(got.get(claim.name, CpuSet())) for core in facts.cores) for claim in claims]
    own = {claim.name for claim in claims}
    others = CpuSet.union(cpus for name, cpus in got.items() if name not in own)
    are_fair = min(sizes) > 0 and (not equal or max(sizes) - min(sizes) <= 1)
    return are_fair and all(others.isdisjoint(got[name]) for name in own)


def _whole_cores(cpus: CpuSet, kept: CpuSet, facts: HostFacts) -> CpuSet:
    """Returns the CPUs without the cores of which enabled services have a part."""
    taken = CpuSet.union(core for core in facts.cores if not core.isdisjoint(kept))
    return cpus - taken - kept


def divide_pools(claims: Sequence[Claim], facts: HostFacts) -> dict[str, CpuSet]:
    """Gives each claim CPUs of its pool: first the cells that fewest may use, then by what each still needs."""
    by_name = {claim.name: claim for claim in claims}
    cores = [cpus for core in facts.cores if (cpus := core & CpuSet.union(claim.pool for claim in claims))]
    cells: dict[tuple[str, ...], list[CpuSet]] = {}
    for core in cores:
        users = tuple(claim.name for claim in claims if not core.isdisjoint(claim.pool))
        cells.setdefault(users, []).append(core)
    sizes = {claim.name: sum(not core.isdisjoint(claim.pool) for core in cores) for claim in claims}
    fair = _fair(claims, sizes, len(cores))
    got = dict.fromkeys(by_name, CpuSet())
    counts = dict.fromkeys(by_name, 0)
    later = dict(sizes)
    for users, cell in sorted(cells.items(), key=lambda item: (len(item[0]), item[1][0].first())):
        # Of each cell that is still to come it needs the same part, so that ranks in several get as much.
        needs = {
            name: (fair[name] - counts[name]) * len(cell) / later[name] for name in users if fair[name] > counts[name]
        }
        if not needs:
            needs = {name: by_name[name].weight / _SCALE for name in users}
        for name in users:
            later[name] -= len(cell)
        # Nobody shares a core who has others, or will have: those that have none, and the fewest to come, are first.
        order = sorted(needs, key=lambda name: (counts[name] > 0, later[name], -needs[name], name))
        urgent = sum(not counts[name] and not later[name] for name in order)
        needs = {name: needs[name] for name in order[: max(urgent, len(cell))]}
        for name, cpus in _divide_cell([by_name[name] for name in needs], needs, cell, facts).items():
            got[name] |= cpus & by_name[name].pool
            counts[name] += sum(not core.isdisjoint(cpus) for core in cell)
    return got


def _fair(claims: Sequence[Claim], sizes: Mapping[str, int], cores: int) -> dict[str, float]:
    """Returns how many cores are fair for each, by weight: nobody needs more than there are in its pool."""
    fair: dict[str, float] = {}
    left, open_to = float(cores), list(claims)
    while open_to:
        weights = sum(claim.weight for claim in open_to)
        small = [claim for claim in open_to if sizes[claim.name] * weights <= left * claim.weight]
        for claim in small or open_to:
            fair[claim.name] = sizes[claim.name] if small else left * claim.weight / weights
        left -= sum(fair[claim.name] for claim in small)
        open_to = [claim for claim in open_to if claim not in small] if small else []
    return fair


def _divide_cell(
    claims: Sequence[Claim], needs: Mapping[str, float], cell: Sequence[CpuSet], facts: HostFacts
) -> dict[str, CpuSet]:
    """Divides some cores as placement divides a host; where each cannot have one, they share them one by one."""
    whole = CpuSet.union(cell)
    if len(claims) == 1:
        return {claims[0].name: whole}
    # What is not in the cell is nobody's here, and what was kept back has been so when the services were planned.
    facts = dataclasses.replace(facts, allowed_cpus=facts.online_cpus, isolated_cpus=CpuSet(), cpu_limit=None)
    host = HostSettings(cpus=whole, reserve_cores=0)
    # One may have lost an accelerator since it was planned; then they are left out.
    for with_gpus in (True, False):
        services = tuple(_as_service(claim, needs[claim.name], with_gpus=with_gpus) for claim in claims)
        # Whoever has all of the cell has nothing there that it could keep rather than the rest.
        held = {claim.name: claim.held & whole for claim in claims if claim.held & whole != whole}
        in_force = {one.unit: Held(held[one.name]) for one in services if held.get(one.name)}
        try:
            shares = place(Config(host, services), dataclasses.replace(facts, in_force=in_force)).shares
        except PlacementError:
            continue
        return {claim.name: shares[one.unit].cpus for claim, one in zip(claims, services, strict=True)}
    return _share_cores(claims, cell)


def _as_service(claim: Claim, need: float, *, with_gpus: bool) -> Service:
    """Makes the service that asks placement for a share of a cell, near its accelerators."""
    gpus = claim.gpus if with_gpus else ()
    settings = TrainSettings(
        script="/", enabled=True, weight=max(1, round(_SCALE * need)), gpus=GpuRequest(len(gpus), gpus)
    )
    return Service(Kind.TRAIN, claim.name, settings, (), {"": Place("a service that runs")})


def _share_cores(claims: Sequence[Claim], cell: Sequence[CpuSet]) -> dict[str, CpuSet]:
    """Gives each one core, the heaviest first, which is that with the least weight on it."""
    loads = [0.0] * len(cell)
    shared = {}
    for claim in sorted(claims, key=lambda claim: (-claim.weight, claim.name)):
        place_of = loads.index(min(loads))
        loads[place_of] += claim.weight
        shared[claim.name] = cell[place_of]
    return shared


def _split(guest: Tenant, got: Mapping[CpuSet, CpuSet], facts: HostFacts) -> tuple[GivenRank, ...]:
    """Returns what each rank of a service gets: of CPUs of all, as many cores as the others, but for one."""
    pieces = [got.get(rank.cpus, CpuSet()) for rank in guest.ranks]
    whole = got.get(guest.cpus)
    if whole and whole != guest.cpus and len({rank.cpus for rank in guest.ranks}) > 1:
        cores = [own for core in facts.cores if (own := core & whole)]
        pieces = [_piece(cores, number, len(guest.ranks)) for number in range(len(guest.ranks))]
    return tuple(
        _give(rank, piece or rank.cpus, fixed=guest.fixed_threads)
        for rank, piece in zip(guest.ranks, pieces, strict=True)
    )


def _piece(cores: Sequence[CpuSet], number: int, parts: int) -> CpuSet:
    first, end = number * len(cores) // parts, (number + 1) * len(cores) // parts
    return CpuSet.union(cores[first : max(end, first + 1)])


def _give(rank: TenantRank, cpus: CpuSet, *, fixed: bool) -> GivenRank:
    return GivenRank(cpus, rank.threads if cpus == rank.cpus else _threads(rank, cpus, fixed=fixed))


def _threads(rank: TenantRank, cpus: CpuSet, *, fixed: bool) -> int:
    """Returns the compute threads of a rank on fewer CPUs: in proportion, with room for its loader workers."""
    if fixed:
        return rank.threads
    if rank.loader_workers and rank.budget:
        budget = rank.budget * len(cpus) // len(rank.cpus)
        return max(1, min(rank.threads, budget - rank.loader_workers))
    return max(1, min(rank.threads, rank.threads * len(cpus) // len(rank.cpus)))
