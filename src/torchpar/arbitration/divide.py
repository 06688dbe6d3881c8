"""Divides the CPUs of services that run and share some: by weight, along cores, by the rules of placement.

An enabled service has its CPUs for itself, and is never moved, nor is an inference service. Each of the others stays within the CPUs that are
planned for it: there its memory is, and its control group lets it run nowhere else. So those are divided that several
are planned on, cell by cell: a cell is the cores on which the same services may run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torchpar.conf.services import Config, Kind, Service
from torchpar.conf.settings import HostSettings, TrainSettings
from torchpar.conf.values import GpuRequest
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import Place, PlacementError
from torchpar.contract.given import GivenRank
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
    """A service that runs, or is about to. `keeps` says that it is never moved, and has its CPUs for itself.

    `fixed_threads`: the conf has a number of threads, which stays. `gpus` are the names of its accelerators, and `held`
    the CPUs that it has now: there its memory is, so it keeps as many of them as it can.
    """

    unit: str
    ranks: tuple[TenantRank, ...]
    weight: int = 100
    keeps: bool = False
    fixed_threads: bool = False
    gpus: tuple[str, ...] = ()
    held: CpuSet = CpuSet()

    @property
    def cpus(self) -> CpuSet:
        """All CPUs that are planned for it."""
        return CpuSet.union(rank.cpus for rank in self.ranks)


@dataclass(frozen=True)
class Part:
    """The CPUs that a service gets for now, by rank, and the units that it shares the planned ones with."""

    ranks: tuple[GivenRank, ...]
    beside: tuple[str, ...]


def divide(tenants: Iterable[Tenant], facts: HostFacts) -> dict[str, Part]:
    """Divides the CPUs among the services that run; those that keep theirs are left out. The order does not matter."""
    tenants = sorted(tenants, key=lambda tenant: tenant.unit)
    kept = CpuSet.union(tenant.cpus for tenant in tenants if tenant.keeps)
    guests = [tenant for tenant in tenants if not tenant.keeps]
    # Whoever is planned on nothing but CPUs of enabled services shares them, as planned and warned of.
    pools = {guest.unit: pool for guest in guests if (pool := _whole_cores(guest.cpus, kept, facts))}
    got = _divide_pools([guest for guest in guests if guest.unit in pools], pools, facts)
    parts = {}
    for guest in guests:
        beside = tuple(other.unit for other in tenants if other is not guest and not other.cpus.isdisjoint(guest.cpus))
        cpus = got.get(guest.unit) or guest.cpus
        parts[guest.unit] = Part(_split(guest, cpus, facts), beside)
    return parts


def _whole_cores(cpus: CpuSet, kept: CpuSet, facts: HostFacts) -> CpuSet:
    """Returns the CPUs without the cores of which enabled services have a part."""
    taken = CpuSet.union(core for core in facts.cores if not core.isdisjoint(kept))
    return cpus - taken - kept


def _divide_pools(guests: Sequence[Tenant], pools: Mapping[str, CpuSet], facts: HostFacts) -> dict[str, CpuSet]:
    """Gives each guest CPUs of its pool: first the cells that fewest may use, then by what each still needs."""
    cores = [cpus for core in facts.cores if (cpus := core & CpuSet.union(pools.values()))]
    cells: dict[tuple[str, ...], list[CpuSet]] = {}
    for core in cores:
        users = tuple(guest.unit for guest in guests if not core.isdisjoint(pools[guest.unit]))
        cells.setdefault(users, []).append(core)
    sizes = {guest.unit: sum(not core.isdisjoint(pools[guest.unit]) for core in cores) for guest in guests}
    fair = _fair(guests, sizes, len(cores))
    by_unit = {guest.unit: guest for guest in guests}
    got = dict.fromkeys(by_unit, CpuSet())
    counts = dict.fromkeys(by_unit, 0)
    later = dict(sizes)
    for users, cell in sorted(cells.items(), key=lambda item: (len(item[0]), item[1][0].first())):
        for unit in users:
            later[unit] -= len(cell)
        needs = {unit: fair[unit] - counts[unit] for unit in users if fair[unit] > counts[unit]}
        if not needs:
            needs = {unit: by_unit[unit].weight / _SCALE for unit in users}
        # Nobody shares a core who has others, or will have: those that have none, and the fewest to come, are first.
        order = sorted(needs, key=lambda unit: (counts[unit] > 0, later[unit], -needs[unit], unit))
        urgent = sum(not counts[unit] and not later[unit] for unit in order)
        needs = {unit: needs[unit] for unit in order[: max(urgent, len(cell))]}
        for unit, cpus in _divide_cell([by_unit[unit] for unit in needs], needs, cell, facts).items():
            got[unit] |= cpus & pools[unit]
            counts[unit] += sum(not core.isdisjoint(cpus) for core in cell)
    return got


def _fair(guests: Sequence[Tenant], sizes: Mapping[str, int], cores: int) -> dict[str, float]:
    """Returns how many cores are fair for each, by weight: nobody needs more than there are in its pool."""
    fair: dict[str, float] = {}
    left, open_to = float(cores), list(guests)
    while open_to:
        weights = sum(guest.weight for guest in open_to)
        small = [guest for guest in open_to if sizes[guest.unit] * weights <= left * guest.weight]
        for guest in small or open_to:
            fair[guest.unit] = sizes[guest.unit] if small else left * guest.weight / weights
        left -= sum(fair[guest.unit] for guest in small)
        open_to = [guest for guest in open_to if guest not in small] if small else []
    return fair


def _divide_cell(
    guests: Sequence[Tenant], needs: Mapping[str, float], cell: Sequence[CpuSet], facts: HostFacts
) -> dict[str, CpuSet]:
    """Divides some cores as placement divides a host; where each cannot have one, they share them one by one."""
    whole = CpuSet.union(cell)
    if len(guests) == 1:
        return {guests[0].unit: whole}
    # What is not in the cell is nobody's here, and what was kept back has been so when the services were planned.
    facts = dataclasses.replace(facts, allowed_cpus=facts.online_cpus, isolated_cpus=CpuSet(), cpu_limit=None)
    host = HostSettings(cpus=whole, reserve_cores=0)
    for with_ranks in (True, False):
        services = tuple(_as_service(guest, needs[guest.unit], with_ranks=with_ranks) for guest in guests)
        # Whoever has all of the cell has nothing there that it could keep rather than the rest.
        held = {guest.unit: guest.held & whole for guest in guests if guest.held & whole != whole}
        in_force = {one.unit: Held(held[one.name]) for one in services if held.get(one.name)}
        try:
            shares = place(Config(host, services), dataclasses.replace(facts, in_force=in_force)).shares
        except PlacementError:
            continue
        return {guest.unit: shares[one.unit].cpus for guest, one in zip(guests, services, strict=True)}
    return _share_cores(guests, cell)


def _as_service(guest: Tenant, need: float, *, with_ranks: bool) -> Service:
    """Makes the service that asks placement for a share of a cell, near its accelerators."""
    settings = TrainSettings(
        script="/",
        enabled=True,
        weight=max(1, round(_SCALE * need)),
        ranks=len(guest.ranks) if with_ranks else 1,
        gpus=GpuRequest(len(guest.gpus) if with_ranks else 0, guest.gpus if with_ranks else ()),
    )
    return Service(Kind.TRAIN, guest.unit, settings, (), {"": Place("a service that runs")})


def _share_cores(guests: Sequence[Tenant], cell: Sequence[CpuSet]) -> dict[str, CpuSet]:
    """Gives each one core, the heaviest first, which is that with the least weight on it."""
    loads = [0] * len(cell)
    shared = {}
    for guest in sorted(guests, key=lambda guest: (-guest.weight, guest.unit)):
        place_of = loads.index(min(loads))
        loads[place_of] += guest.weight
        shared[guest.unit] = cell[place_of]
    return shared


def _split(guest: Tenant, cpus: CpuSet, facts: HostFacts) -> tuple[GivenRank, ...]:
    """Divides the CPUs of a service among its ranks, which never differ by more than one core."""
    if cpus == guest.cpus:
        return tuple(GivenRank(rank.cpus, rank.threads) for rank in guest.ranks)
    if len({rank.cpus for rank in guest.ranks}) == 1:
        pieces = [cpus] * len(guest.ranks)
    else:
        cores = [own for core in facts.cores if (own := core & cpus)]
        pieces = [_piece(cores, number, len(guest.ranks)) for number in range(len(guest.ranks))]
    return tuple(
        GivenRank(piece, _threads(rank, piece, fixed=guest.fixed_threads))
        for rank, piece in zip(guest.ranks, pieces, strict=True)
    )


def _piece(cores: Sequence[CpuSet], number: int, parts: int) -> CpuSet:
    first, end = number * len(cores) // parts, (number + 1) * len(cores) // parts
    return CpuSet.union(cores[first : max(end, first + 1)])


def _threads(rank: TenantRank, cpus: CpuSet, *, fixed: bool) -> int:
    """Returns the compute threads of a rank on fewer CPUs: in proportion, with room for its loader workers."""
    if fixed:
        return rank.threads
    if rank.loader_workers and rank.budget:
        budget = rank.budget * len(cpus) // len(rank.cpus)
        return max(1, min(rank.threads, budget - rank.loader_workers))
    return max(1, min(rank.threads, rank.threads * len(cpus) // len(rank.cpus)))
