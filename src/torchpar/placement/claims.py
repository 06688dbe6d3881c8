"""Claims: who asks for a part of the host, before anything is given out.

A claim is one service, or the services of one slot, which take turns on the same CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torchpar.conf.services import Service
from torchpar.conf.values import Binding, CpuRequest, CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import CoresError, PlacementError
from torchpar.facts.topology import Held, PciDevice
from torchpar.placement.cores import Core, Cores
from torchpar.placement.quality import Ask


@dataclass(frozen=True)
class Reason:
    """The reason for a value: the key it is about, the value, and the rule with the facts it rests on."""

    key: str
    value: str
    why: str


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Decision(Generic[T_co]):
    """The value that a rule has decided on for a claim, the reasons for it, and what is to be warned of."""

    value: T_co
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()


_NOTHING = Held(CpuSet())


@dataclass(frozen=True)
class Claim:
    """One service, or the services of one slot. `held` is what it has in force.

    `named` are the cores that its CPUs= names, and `gpus` the accelerators that it gets, which both come before all
    other cores.
    """

    services: tuple[Service, ...]
    request: CpuRequest
    weight: int
    enabled: bool
    held: Held = _NOTHING
    named: tuple[Core, ...] = ()
    gpus: tuple[PciDevice, ...] = ()

    @property
    def name(self) -> str:
        """Its section header, or those of the slot's services."""
        return " and ".join(service.section for service in self.services)

    @property
    def who(self) -> str:
        """The claim for a message: where it asks, and for what."""
        return f"{self.services[0].origin('CPUs')}: {self.name} CPUs={request_text(self.request)}"

    def refuse(self, why: str) -> PlacementError:
        """Returns the error that says that its CPUs= cannot be had."""
        return PlacementError(f"{self.who}: {why}", self.services[0].unit)

    def lacks(self, why: str) -> CoresError:
        """Returns the error that says that there are too few cores for its CPUs=."""
        return CoresError(f"{self.who}: {why}", self.services[0].unit)

    def ranks(self) -> int:
        """Returns the ranks that the conf gives a number of; 1 where they are counted on the host."""
        trains = [service.train() for service in self.services]
        return max((train.ranks for train in trains if train and isinstance(train.ranks, int)), default=1)

    def by_node(self) -> bool:
        """Says whether it has a rank for each NUMA node."""
        train = self.services[0].train() if len(self.services) == 1 else None
        return train is not None and train.ranks == "numa"

    def ask(self) -> Ask:
        """Says what it asks for, as the measure of placements sees it."""
        trains = any(service.train() for service in self.services)
        return Ask(self.weight, self.request.count, self.ranks(), by_node=self.by_node(), trains=trains)

    def bound(self) -> bool:
        """Says whether each of its ranks has cores of its own, and no use for others."""
        trains = [service.train() for service in self.services]
        return all(train and train.binding in (Binding.AUTO, Binding.EXCLUSIVE) for train in trains)

    def exclusive(self) -> bool:
        """Says whether what it gets is for nobody else."""
        return self.enabled and self.request.kind is not CpuRequestKind.SHARED


# What jobs at the moment compute on that no enabled service holds, by who they are; None for a plan of any moment.
Taken = Mapping[str, Held] | None

# The cores of each claim, by its name; one that is not among them has not been looked at.
Placed = Mapping[str, Cores]


def make_claims(services: Iterable[Service], in_force: Mapping[str, Held]) -> list[Claim]:
    """Makes one claim for each slot, and for each service without one; `in_force` is what each unit has now."""
    slots: dict[str, list[Service]] = {}
    for service in services:
        slots.setdefault(f"slot {service.settings.slot}" if service.settings.slot else service.unit, []).append(service)
    claims = []
    for members in slots.values():
        claims.append(
            Claim(
                tuple(members),
                _slot_request(members),
                max(service.settings.weight for service in members),
                any(service.settings.enabled for service in members),
                next((in_force[service.unit] for service in members if service.unit in in_force), _NOTHING),
            )
        )
    return claims


def _slot_request(members: Sequence[Service]) -> CpuRequest:
    """Says what a slot asks for: the most that any of its services does, be it by CPUs= or by Ranks=."""
    requests = {service.settings.cpus for service in members}
    explicit = [request for request in requests if request.is_explicit()]
    if explicit and len(requests) > 1:
        service = next(service for service in members if service.settings.cpus.is_explicit())
        slot = f"the services of Slot={service.settings.slot} share one set of CPUs"
        raise service.refuse("CPUs", request_text(service.settings.cpus), f"{slot}; give all of them the same CPUs=")
    if explicit:
        return explicit[0]
    counts = [request.count for request in requests if request.kind is CpuRequestKind.COUNT]
    if counts:
        # A service that gives its own number has that to divide among its ranks.
        trains = [service.train() for service in members if service.settings.cpus.kind is not CpuRequestKind.COUNT]
        ranks = [train.ranks for train in trains if train and isinstance(train.ranks, int)]
        return CpuRequest(CpuRequestKind.COUNT, max([*counts, *ranks]))
    auto = CpuRequest(CpuRequestKind.AUTO)
    return auto if auto in requests else CpuRequest(CpuRequestKind.SHARED)


def largest_remainder(total: int, weights: Sequence[int], *, least: Sequence[int] = ()) -> list[int]:
    """Splits `total` by weights with whole numbers that sum to it, each at least its `least` (Hamilton's method).

    `total` must be at least the sum of those; earlier entries win ties.
    """
    if not weights:
        return []
    floors = list(least) or [0] * len(weights)
    spare = total - sum(floors)
    ideal = [total * weight / sum(weights) for weight in weights]
    above = [max(0.0, share - floor) for share, floor in zip(ideal, floors, strict=True)]
    scale = spare / sum(above) if sum(above) else 0.0
    exact = [share * scale for share in above]
    counts = [int(share + 1e-9) for share in exact]
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: spare - sum(counts)]:
        counts[i] += 1
    return [floor + count for floor, count in zip(floors, counts, strict=True)]


def request_text(request: CpuRequest) -> str:
    """Returns the value of CPUs= that asks for this."""
    if request.kind is CpuRequestKind.COUNT:
        return str(request.count)
    if request.kind is CpuRequestKind.LIST:
        return str(request.numbers)
    if request.is_explicit():
        return f"{request.kind.value}:{request.numbers}"
    return str(request.kind.value)
