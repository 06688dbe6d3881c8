"""Says which cores of a host may be used, which of them are kept for the system, and why others may not be used."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import PlacementError
from torchpar.facts.topology import HostFacts
from torchpar.placement.cores import Core, Distance, choose_cores


@dataclass(frozen=True)
class UsableCores:
    """The part of a host that placement may use.

    `named` are all cores that a CPUs= list may name, `pool` those that counts, auto and shared draw from, `slow` the
    slower cores of a host with several kinds, for loader workers, shared services and those that find no other core.
    `beyond` are the cores that the CPU quota keeps back while every service has one, the first to be given away first,
    and `spare` those that ReserveCores=auto does. `left_out` says of every online CPU outside `pool` why; `quota` is
    the CPU quota in whole CPUs, None when there is none. `distance` is that between two NUMA nodes. `warnings` is what
    of [Host] could not be done.
    """

    named: tuple[Core, ...]
    pool: tuple[Core, ...]
    slow: tuple[Core, ...]
    left_out: Mapping[int, str]
    quota: int | None
    distance: Distance = field(compare=False)
    warnings: tuple[str, ...] = ()
    beyond: tuple[Core, ...] = ()
    spare: tuple[Core, ...] = ()

    @property
    def cpus(self) -> CpuSet:
        """The CPUs of the pool."""
        return CpuSet.union(core.cpus for core in self.pool)

    @property
    def alike(self) -> bool:
        """Says whether any of its cores does as well as another one."""
        return len({core.capacity for core in (*self.pool, *self.beyond, *self.slow, *self.spare)}) == 1


def find_usable_cores(facts: HostFacts, *, host_cpus: CpuSet | None, reserve: int | None) -> UsableCores:
    """Returns the usable cores of a host; `host_cpus` is [Host] CPUs=, `reserve` [Host] ReserveCores= (None is auto).

    Raises PlacementError when no core is left.
    """
    left_out: dict[int, str] = {}
    for cpu in facts.online_cpus - facts.allowed_cpus:
        left_out[cpu] = f"the cpuset of this system allows only CPUs {facts.allowed_cpus}"
    allowed = facts.online_cpus & facts.allowed_cpus
    if host_cpus is not None:
        absent = host_cpus - facts.online_cpus
        if not host_cpus & allowed:
            raise PlacementError(
                f"[Host] CPUs={host_cpus}: none of them is usable here; this host has CPUs {allowed} to give"
            )
        for cpu in allowed - host_cpus:
            left_out[cpu] = f"not in [Host] CPUs={host_cpus}" + (
                f" (of which {absent} are not online)" if absent else ""
            )
        allowed = allowed & host_cpus
    named = _make_cores(facts, allowed)
    if not named:
        raise PlacementError(
            f"no CPU of this host may be used: online {facts.online_cpus}, allowed {facts.allowed_cpus}"
        )
    # Kernel's isolcpus=: nothing is balanced onto them, so only who names them gets them.
    isolated = facts.isolated_cpus - (host_cpus or CpuSet())
    pool = [core for core in named if core.cpus.isdisjoint(isolated)] or list(named)
    why = "isolated from the scheduler (isolcpus=); name it in CPUs= to use it"
    left_out.update((cpu, why) for core in set(named).difference(pool) for cpu in core.cpus)
    reserved = _reserved(pool, auto_reserve(pool, facts) if reserve is None else reserve)
    warnings = () if reserve is None or len(reserved) == reserve else (_reduced(reserve, reserved),)
    for core in reserved:
        left_out.update(dict.fromkeys(core.cpus, "kept for the system ([Host] ReserveCores=)"))
        pool.remove(core)
    quota = None if facts.cpu_limit is None else max(1, int(facts.cpu_limit))
    pool, slow = _fastest_set(pool, quota)
    for core in slow:
        why = f"a slower core ({core.capacity:.2f} of the fastest): for loader workers, shared services, who names it"
        left_out.update(dict.fromkeys(core.cpus, f"{why}, and services that find no other"))
    spare = tuple(reserved) if reserve is None else ()
    distance = _node_distance(facts)
    beyond: list[Core] = []
    if quota is not None and quota < len(pool):
        kept = set(choose_cores(pool, quota, distance=distance))
        beyond = sorted((core for core in pool if core not in kept), key=lambda core: -core.capacity)
        for core in beyond:
            left_out.update(dict.fromkeys(core.cpus, f"beyond the CPU quota of {facts.cpu_limit:g} CPUs"))
        pool = [core for core in pool if core in kept]
    in_order = dict(sorted(left_out.items()))
    return UsableCores(named, tuple(pool), tuple(slow), in_order, quota, distance, warnings, tuple(beyond), spare)


def _fastest_set(cores: Sequence[Core], quota: int | None) -> tuple[list[Core], list[Core]]:
    """Returns the cores to compute on, and the slower ones: threads that wait for each other are as fast as the
    slowest, so of the sets from the fastest core down it is the one with the greatest number × slowest capacity. No
    more cores than the CPU quota has compute at a time."""
    sizes = Counter(core.capacity for core in cores)
    best, number, chosen = 0.0, 0, 0.0
    for capacity in sorted(sizes, reverse=True):
        number += sizes[capacity]
        speed = capacity * (number if quota is None else min(number, quota))
        if speed > best * (1 + 1e-9):
            best, chosen = speed, capacity
    return [c for c in cores if c.capacity >= chosen], [c for c in cores if c.capacity < chosen]


def usable_before_reserve(facts: HostFacts, host_cpus: CpuSet | None) -> tuple[Core, ...]:
    """Returns the cores that services could get without a name: those of [Host] CPUs=, not isolated, none kept back."""
    allowed = facts.online_cpus & facts.allowed_cpus & (facts.online_cpus if host_cpus is None else host_cpus)
    isolated = facts.isolated_cpus - (host_cpus or CpuSet())
    named = _make_cores(facts, allowed)
    return tuple(core for core in named if core.cpus.isdisjoint(isolated)) or named


def auto_reserve(cores: Sequence[Core], facts: HostFacts) -> int:
    """Counts the cores that ReserveCores=auto keeps: none below 4 cores, 1 below 16, then one for each NUMA node.

    It is never more than a sixteenth of them. Packages are not counted: a virtual machine may have one for each CPU.
    Cores that a cpuset leaves out, as a container's, are left to the system of the host already.
    """
    count = len(cores)
    count = 0 if count < 4 else 1 if count < 16 else min(len({core.numa_node for core in cores}), count // 16)
    return max(0, count - sum(core.isdisjoint(facts.allowed_cpus) for core in facts.cores))


def _make_cores(facts: HostFacts, allowed: CpuSet) -> tuple[Core, ...]:
    package = _place(((p.id, p.cpus) for p in facts.packages or ()), facts.online_cpus)
    numa_node = _place(((n.id, n.cpus) for n in facts.numa_nodes), facts.online_cpus)
    core_complex = _place(enumerate(facts.l3_groups or ()), facts.online_cpus)
    capacity = {cpu: kind.capacity for kind in facts.cpu_kinds for cpu in kind.cpus}
    cores = []
    for cpus in facts.cores:
        usable = cpus & allowed
        if usable:
            cpu = usable.first()
            cores.append(Core(usable, package[cpu], numa_node[cpu], core_complex[cpu], capacity.get(cpu, 1.0)))
    return tuple(sorted(cores, key=lambda core: core.cpus.first()))


def _place(places: Iterable[tuple[int, CpuSet]], cpus: CpuSet) -> dict[int, int]:
    of_cpu = dict.fromkeys(cpus, -1)
    for number, members in places:
        of_cpu.update(dict.fromkeys(members, number))
    return of_cpu


def _reserved(cores: Sequence[Core], reserve: int) -> list[Core]:
    """Returns the cores kept for the system: the slowest, and of these the first of each NUMA node in turn.

    Where there are fewer than nodes they are of as few nodes as can be, if equal parts of nodes then have more cores.
    At least one core is always left.
    """
    count = min(reserve, len(cores) - 1)
    by_place: dict[tuple[float, int], list[Core]] = {}
    for core in cores:
        by_place.setdefault((core.capacity, core.numa_node), []).append(core)
    # The largest nodes first, so that what is left of them is more alike.
    places = sorted(by_place.values(), key=lambda place: (place[0].capacity, -len(place)))
    turns = [(core.capacity, turn, i, core) for i, place in enumerate(places) for turn, core in enumerate(place)]
    spread = [core for *_, core in sorted(turns, key=lambda each: each[:3])][:count]
    smallest = sorted(by_place.values(), key=lambda place: (place[0].capacity, len(place)))
    together = [core for place in smallest for core in place][:count]
    if count < len({core.numa_node for core in cores}) and _equal_parts(cores, together) > _equal_parts(cores, spread):
        return together
    return spread


def _equal_parts(cores: Iterable[Core], without: Collection[Core]) -> int:
    """Returns the most cores that equal parts of NUMA nodes have together, without some cores."""
    sizes = Counter(core.numa_node for core in cores)
    sizes.subtract(core.numa_node for core in without)
    return max(number * size for number, size in enumerate(sorted(sizes.values(), reverse=True), 1))


def _reduced(reserve: int, reserved: list[Core]) -> str:
    return f"[Host] ReserveCores={reserve}: reduced to {len(reserved)}, as services need a core at least"


def _node_distance(facts: HostFacts) -> Distance:
    """Returns the distance between two NUMA nodes by the firmware's table; 10 to itself and 20 to others where it has
    none."""
    table: dict[tuple[int, int], int] = {}
    if facts.distances:
        for a, row in zip(facts.distances.nodes, facts.distances.matrix, strict=False):
            table.update(((a, b), value) for b, value in zip(facts.distances.nodes, row, strict=False))
    return lambda a, b: table.get((a, b), 10 if a == b else 20)


def keep_unheld(
    usable: UsableCores, part: Literal["spare", "beyond"], cores: Sequence[Core], free: Sequence[Core], held: CpuSet
) -> UsableCores:
    """Keeps `cores` back that no service has now, in place of those that one has; of their nodes if possible.

    As many as now are `free`, as they had to be given away.
    """
    back = [core for core in cores if core not in set(free)]
    taken = [core for core in back if not core.cpus.isdisjoint(held)]
    if not taken:
        return usable
    nodes = {core.numa_node for core in taken}
    unheld = [core for core in free if core.cpus.isdisjoint(held)]
    unheld.sort(key=lambda core: (core.numa_node not in nodes, core.cpus.first()))
    others = [core for core in back if core not in taken]
    kept = [*others, *unheld[: len(taken)], *taken][: len(back)]
    given = sorted({*free, *taken}.difference(kept), key=lambda core: (core not in cores, core.cpus.first()))
    return keep_others(usable, part, cores, kept, given[: len(cores) - len(back)])


def keep_others(
    usable: UsableCores,
    part: Literal["spare", "beyond"],
    cores: Sequence[Core],
    left: Sequence[Core],
    given: Sequence[Core] = (),
) -> UsableCores:
    """Keeps cores that are left back for the system (`spare`) or as `beyond` the CPU quota, in place of those `cores`;
    the same ones as before where these are left. Those that had to be `given` away are counted among them."""
    before = set(cores)
    kept = sorted(left, key=lambda core: (core not in before, core.cpus.first()))[: len(cores) - len(given)]
    kept = [*given, *kept]
    if set(kept) == before and set(given) == set(cores[: len(given)]):
        return usable
    why = usable.left_out[cores[0].cpus.first()]
    before_cpus = CpuSet.union(core.cpus for core in cores)
    left_out = {cpu: text for cpu, text in usable.left_out.items() if cpu not in before_cpus}
    left_out.update((cpu, why) for core in kept for cpu in core.cpus)
    pool = tuple(sorted({*usable.pool, *cores}.difference(kept), key=lambda core: core.cpus.first()))
    left_out = dict(sorted(left_out.items()))
    if part == "spare":
        return dataclasses.replace(usable, pool=pool, spare=tuple(kept), left_out=left_out)
    return dataclasses.replace(usable, pool=pool, beyond=tuple(kept), left_out=left_out)
