"""Finds what to change in a conf that asks for more cores than there are: a change is tried before it is named."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from torchpar.conf.services import Config, Service
from torchpar.conf.values import CpuRequest, CpuRequestKind
from torchpar.contract.errors import CoresError, PlacementError
from torchpar.placement.claims import request_text

# How many sections are changed at the most, and how many services are looked at for a change.
_SECTIONS = 4
_SERVICES = 8

_SHARED = CpuRequest(CpuRequestKind.SHARED)
_Services = tuple[Service, ...]


def find_change(config: Config, error: CoresError, plan: Callable[[Config], object]) -> str:
    """Returns the smallest change to the conf with which `plan` refuses nothing; "" where none is found.

    Fewer cores or ranks of the service that was refused, then of another; then a service that is not enabled or
    shares; then several changes; then as many services that share as it takes.
    """
    change = _one_change(config, error, plan)
    if change:
        return change
    several, number = _some_changes(config, error, plan)
    sharing, fewer = _let_share(config, error, plan)
    return several if several and (not sharing or number <= fewer) else sharing


def _some_changes(config: Config, error: CoresError, plan: Callable[[Config], object]) -> tuple[str, int]:
    """Returns several changes one after the other, and their number."""
    done: list[str] = []
    for _ in range(_SECTIONS):
        change = _one_change(config, error, plan) if done else ""
        if change:
            return " and ".join([*done, change]), len(done) + 1
        text, config = _take_out(config, error)
        if not text:
            break
        done.append(text)
        try:
            plan(config)
        except CoresError as next_error:
            error = next_error
        except PlacementError:
            break
        else:
            return " and ".join(done), len(done)
    return "", 0


def _fits(config: Config, plan: Callable[[Config], object]) -> bool:
    try:
        plan(config)
    except PlacementError:
        return False
    return True


def _let_share(config: Config, error: CoresError, plan: Callable[[Config], object]) -> tuple[str, int]:
    """Returns which of the services, those that ask for most, are to share what the others leave, and their number."""
    groups = [group for group in _groups(config, error) if any(_holds_cores(service) for service in group)]
    groups.sort(key=lambda group: -max(_cores(group), _ranks(group)))
    for text, ranks in (("CPUs=shared", None), ("CPUs=shared Ranks=1", 1)):

        def changed(number: int, ranks: int | None = ranks) -> Config:
            sharing = tuple(service for group in groups[:number] for service in _with(group, cpus=_SHARED))
            return _replace(config, sharing if ranks is None else _with_ranks(sharing, ranks))

        numbers = range(1, len(groups) + 1)
        found = bisect.bisect_left(numbers, True, key=lambda number: _fits(changed(number), plan))
        if found < len(numbers):
            return f"{text} for {_names(groups[: numbers[found]])}", numbers[found]
    return "", 0


def _holds_cores(service: Service) -> bool:
    return service.settings.enabled and service.settings.cpus != _SHARED


def _names(groups: Sequence[_Services]) -> str:
    """Returns the names of groups; of very many only what they ask for, where that is the same."""
    asking = {service.settings.cpus for group in groups for service in group}
    if len(groups) > _SERVICES and len(asking) == 1:
        return f"{len(groups)} of the services with CPUs={request_text(asking.pop())}"
    return " and ".join(_name(group) for group in groups)


def _one_change(config: Config, error: CoresError, plan: Callable[[Config], object]) -> str:
    def fits(changed: Config) -> bool:
        return _fits(changed, plan)

    groups = _groups(config, error)[:_SERVICES]
    for group in groups:
        for key, most, fewer in (("CPUs", _cores, _with_cores), ("Ranks", _ranks, _with_ranks)):
            number = _largest(config, group, most(group) - 1, fewer, fits)
            if number:
                return f"{key}={number} for {_name(group)}"
    for group in groups:
        fitting = [text for text, changed in _without(group) if fits(_replace(config, changed))]
        if fitting:
            return f"{' or '.join(fitting)} for {_name(group)}"
    return ""


def _groups(config: Config, error: CoresError) -> list[_Services]:
    """Returns the services that ask for cores, those of a slot together: the refused one first, then the largest."""
    slots: dict[str, list[Service]] = {}
    for service in config.services:
        slots.setdefault(service.settings.slot or f"unit {service.unit}", []).append(service)
    groups = [tuple(group) for group in slots.values()]
    groups.sort(
        key=lambda group: (
            all(service.unit != error.unit for service in group),
            not any(service.settings.enabled for service in group),
            -max(_cores(group), _ranks(group)),
        )
    )
    return groups


def _largest(
    config: Config,
    group: _Services,
    most: int,
    fewer: Callable[[_Services, int], _Services],
    fits: Callable[[Config], bool],
) -> int:
    """Finds the largest number from 1 to `most` with which it fits, where it does with smaller ones; 0 if with none."""
    low = 0
    middle = 1
    while low < most:
        if fits(_replace(config, fewer(group, middle))):
            low = middle
        elif middle == 1:
            return 0
        else:
            most = middle - 1
        middle = (low + most + 1) // 2
    return low


def _without(group: _Services) -> Iterator[tuple[str, _Services]]:
    """Yields what to write so that a group holds no cores of its own."""
    if any(service.settings.enabled for service in group):
        yield "Enabled=no", _with(group, enabled=False)
    if any(service.settings.cpus != _SHARED for service in group):
        yield "CPUs=shared", _with(group, cpus=_SHARED)


def _take_out(config: Config, error: CoresError) -> tuple[str, Config]:
    """Changes the refused service as far as can be: it has a single core and rank, or is not enabled."""
    group = _groups(config, error)[0]
    fewer = [f"{key}=1" for key, number in (("CPUs", _cores(group)), ("Ranks", _ranks(group))) if number > 1]
    if fewer:
        return f"{' '.join(fewer)} for {_name(group)}", _replace(config, _with_ranks(_with_cores(group, 1), 1))
    if any(service.settings.enabled for service in group):
        return f"Enabled=no for {_name(group)}", _replace(config, _with(group, enabled=False))
    return "", config


def _cores(group: Sequence[Service]) -> int:
    return max(service.settings.cpus.count for service in group)


def _ranks(group: Sequence[Service]) -> int:
    trains = [service.train() for service in group]
    return max((train.ranks for train in trains if train and isinstance(train.ranks, int)), default=1)


def _with_cores(group: _Services, number: int) -> _Services:
    fewer = CpuRequest(CpuRequestKind.COUNT, number)
    return tuple(_set(service, cpus=fewer) if service.settings.cpus.count > number else service for service in group)


def _with_ranks(group: _Services, number: int) -> _Services:
    def has_more(service: Service) -> bool:
        train = service.train()
        return train is not None and isinstance(train.ranks, int) and train.ranks > number

    return tuple(_set(service, ranks=number) if has_more(service) else service for service in group)


def _with(group: _Services, **settings: object) -> _Services:
    return tuple(_set(service, **settings) for service in group)


def _set(service: Service, **settings: object) -> Service:
    return dataclasses.replace(service, settings=dataclasses.replace(service.settings, **settings))  # type: ignore[arg-type]


def _replace(config: Config, changed: Sequence[Service]) -> Config:
    by_unit = {service.unit: service for service in changed}
    return dataclasses.replace(
        config, services=tuple(by_unit.get(service.unit, service) for service in config.services)
    )


def _name(group: Sequence[Service]) -> str:
    return " and ".join(service.section for service in group)
