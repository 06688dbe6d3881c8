"""Finds what to change in a conf that asks for more cores than there are: a change is tried before it is named."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from torchpar.conf.services import Config, Service
from torchpar.conf.values import CpuRequest, CpuRequestKind
from torchpar.contract.errors import CoresError, PlacementError
from torchpar.placement.claims import request_text

# How many changes are made one after the other, and how many services are looked at for a change.
_CHANGES = 4
_SERVICES = 8

# How many sections are named; those that are left out are the next ones of another try.
_NAMED = 20

_SHARED = CpuRequest(CpuRequestKind.SHARED)
_Services = tuple[Service, ...]


def find_change(config: Config, error: CoresError, plan: Callable[[Config], object]) -> str:
    """Returns the smallest change to the conf with which `plan` refuses nothing; "" where none is found.

    Fewer cores or ranks of the service that was refused, then of another; then a service that is not enabled or
    shares; then several changes; then as many services that share as it takes.
    """
    ways = _fewest(config, _one_change(config, error, plan), plan)
    if not ways:
        ways = _fewest(config, _some_changes(config, error, plan), plan)
        sharing = _fewest(config, _let_share(config, error, plan), plan)
        if sharing and (not ways or len(_changed(config, sharing[0])) < len(_changed(config, ways[0]))):
            ways = sharing
    return _say(config, ways)


def _some_changes(config: Config, error: CoresError, plan: Callable[[Config], object]) -> list[Config]:
    """Returns the conf with several changes, made one after the other; in several ways where the last one has some."""
    changed = config
    for _ in range(_CHANGES):
        ways = _one_change(changed, error, plan) if changed is not config else []
        if ways:
            return ways
        changed, before = _take_out(changed, error), changed
        if changed is before:
            break
        try:
            plan(changed)
        except CoresError as next_error:
            error = next_error
        except PlacementError:
            break
        else:
            return [changed]
    return []


def _fewest(config: Config, ways: list[Config], plan: Callable[[Config], object]) -> list[Config]:
    """Takes back what others of the changes have made needless, key by key; very many are left as they are."""
    changed = _changed(config, ways[0]) if ways else {}
    for service in config.services if len(changed) <= _SERVICES else ():
        for name in changed.get(service.unit, ()):
            old = {name: getattr(service.settings, name)}
            same = [[_set(one, **old) for one in way.services if one.unit == service.unit] for way in ways]
            fewer = [_replace(way, back) for way, back in zip(ways, same, strict=True)]
            if all(_fits(way, plan) for way in fewer):
                return _fewest(config, fewer, plan)
    return ways


def _fits(config: Config, plan: Callable[[Config], object]) -> bool:
    try:
        plan(config)
    except PlacementError:
        return False
    return True


def _let_share(config: Config, error: CoresError, plan: Callable[[Config], object]) -> list[Config]:
    """Returns the conf where those services that ask for most share what the others leave; none where all of them are
    not enough."""
    groups = [group for group in _groups(config, error) if any(_holds_cores(service) for service in group)]
    groups.sort(key=lambda group: -max(_cores(group), _ranks(group)))
    for ranks in (None, 1):

        def changed(number: int, ranks: int | None = ranks) -> Config:
            sharing = tuple(service for group in groups[:number] for service in _with(group, cpus=_SHARED))
            return _replace(config, sharing if ranks is None else _with_ranks(sharing, ranks))

        numbers = range(1, len(groups) + 1)
        found = bisect.bisect_left(numbers, True, key=lambda number: _fits(changed(number), plan))
        if found < len(numbers):
            return [changed(numbers[found])]
    return []


def _holds_cores(service: Service) -> bool:
    return service.settings.enabled and service.settings.cpus != _SHARED


def _changed(before: Config, after: Config) -> dict[str, list[str]]:
    """Returns the settings of each unit that are others in another conf."""
    changed = {}
    for old, new in zip(before.services, after.services, strict=True):
        fields = [field.name for field in dataclasses.fields(old.settings)] if old is not new else []
        names = [name for name in fields if getattr(old.settings, name) != getattr(new.settings, name)]
        if names:
            changed[old.unit] = names
    return changed


def _say(config: Config, ways: Sequence[Config]) -> str:
    """Returns what to write in which sections: only what was tried, and only where that is another setting.

    Of several ways that are not in the same sections it is the first.
    """
    ways = [way for way in ways if _changed(config, way).keys() == _changed(config, ways[0]).keys()]
    sections: dict[str, list[Service]] = {}
    for service, *others in zip(config.services, *(way.services for way in ways), strict=True):
        texts = [_difference(service, other) for other in others]
        if any(texts):
            sections.setdefault(" or ".join(dict.fromkeys(texts)), []).append(service)
    return " and ".join(f"{text} for {_names(config, services)}" for text, services in sections.items())


def _difference(old: Service, new: Service) -> str:
    """Returns the keys that are others in a changed service, with their new values."""
    keys = [("Enabled", "no", old.settings.enabled != new.settings.enabled)]
    keys.append(("CPUs", request_text(new.settings.cpus), old.settings.cpus != new.settings.cpus))
    keys.append(("Ranks", str(_ranks([new])), _ranks([old]) != _ranks([new])))
    return " ".join(new.ask(key, value) for key, value, is_other in keys if is_other)


def _names(config: Config, changed: Sequence[Service]) -> str:
    """Returns the names of sections; of very many only their number, where it may be any of those that hold cores."""
    holding = [service for service in config.services if _holds_cores(service)]
    kinds = {(one.kind, one.settings.cpus, _ranks([one]), one.settings.slot or "") for one in [*holding, *changed]}
    if len(changed) > _SERVICES and len(kinds) == 1 and not changed[0].settings.slot:
        return f"{len(changed)} of the enabled services with CPUs={request_text(changed[0].settings.cpus)}"
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return " and ".join(service.section for service in changed[:_NAMED]) + more


def _one_change(config: Config, error: CoresError, plan: Callable[[Config], object]) -> list[Config]:
    """Returns the conf with one change that is enough, in all ways that are as small; none where none is enough."""

    def fits(changed: Config) -> bool:
        return _fits(changed, plan)

    groups = _groups(config, error)[:_SERVICES]
    for group in groups:
        for most, fewer in ((_cores, _with_cores), (_ranks, _with_ranks)):
            number = _largest(config, group, most(group) - 1, fewer, fits)
            if number:
                return [_replace(config, fewer(group, number))]
    for group in groups:
        fitting = [changed for changed in (_replace(config, each) for each in _without(group)) if fits(changed)]
        if fitting:
            return fitting
    return []


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


def _without(group: _Services) -> Iterator[_Services]:
    """Yields the ways in which a group holds no cores of its own."""
    if any(service.settings.enabled for service in group):
        yield _with(group, enabled=False)
    if any(service.settings.cpus != _SHARED for service in group):
        yield _with(group, cpus=_SHARED)


def _take_out(config: Config, error: CoresError) -> Config:
    """Changes the refused service as far as can be: it has a single core and rank, or is not enabled."""
    group = _groups(config, error)[0]
    if _cores(group) > 1 or _ranks(group) > 1:
        return _replace(config, _with_ranks(_with_cores(group, 1), 1))
    if any(service.settings.enabled for service in group):
        return _replace(config, _with(group, enabled=False))
    return config


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
