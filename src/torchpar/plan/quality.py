"""How good a plan is, by the measure of placement/quality.py: for benchmarks and tests, and to compare two plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torchpar.conf.services import Config, Service
from torchpar.conf.values import CpuRequestKind
from torchpar.placement.cores import Core, auto_reserve, usable_before_reserve
from torchpar.placement.quality import (
    Quality,
    fair_shares,
    host_speed,
    inference_speed,
    process_speed,
    total,
    training_speed,
)
from torchpar.plan.plan import Plan, ServicePlan


def plan_quality(plan: Plan, config: Config) -> float:
    """The quality of a plan, 1 where every service has its fair share of the host."""
    return total(service_qualities(plan, config).values())


def service_qualities(plan: Plan, config: Config) -> Mapping[str, Quality]:
    """What each service gets and what would be fair, by unit.

    Measured are those that compute on CPUs and are enabled, or all where none is: each then has the host for itself.
    Of a slot it is the first service, and none that names its CPUs or takes what others leave.
    """
    cores = usable_before_reserve(plan.facts, config.host.cpus)
    of_cpu = {cpu: core for core in cores for cpu in core.cpus}
    reserve = auto_reserve(cores) if config.host.reserve_cores is None else config.host.reserve_cores
    given = sorted(cores, key=lambda core: -core.capacity)[: max(1, len(cores) - reserve)]
    speed = host_speed(given)
    largest = max(Counter(core.numa_node for core in given).values())
    if plan.facts.cpu_limit is not None:
        speed = min(speed, max(1, int(plan.facts.cpu_limit)))
    services = [service for service in plan.services if service.service.settings.enabled]
    alone = not services
    services = _first_of_slots(services or list(plan.services))
    kinds = {service.unit: service.service.settings.cpus.kind for service in services}
    counts = [service for service in services if kinds[service.unit] is CpuRequestKind.COUNT]
    autos = [service for service in services if kinds[service.unit] is CpuRequestKind.AUTO]
    fair = {}
    for service in counts:
        count, ranks = service.service.settings.cpus.count, _ranks(service.service)
        fair[service.unit] = float(max(ranks, count - count % ranks))
    if alone:
        fair.update((one.unit, fair_shares(speed, [1], [_ranks(one.service)], largest)[0]) for one in autos)
    else:
        named = [one for one in services if one.service.settings.cpus.is_explicit()]
        speed -= sum(fair.values()) + sum(sum(of_cpu[cpu].capacity for cpu in _firsts(one, of_cpu)) for one in named)
        # One core for the services that take what others leave, where there is one.
        shared = any(kind is CpuRequestKind.SHARED for kind in kinds.values())
        speed = max(speed - (1 if shared and speed > len(autos) else 0), 0.0)
        shares = fair_shares(
            speed, [one.service.settings.weight for one in autos], [_ranks(one.service) for one in autos], largest
        )
        fair.update((one.unit, share) for one, share in zip(autos, shares, strict=True))
    return {
        one.unit: Quality(_speed(one, of_cpu), fair[one.unit]) for one in services if one.unit in fair and not one.gpus
    }


def _first_of_slots(services: list[ServicePlan]) -> list[ServicePlan]:
    taken: dict[str, ServicePlan] = {}
    for service in services:
        taken.setdefault(service.service.settings.slot or service.unit, service)
    return list(taken.values())


def _ranks(service: Service) -> int:
    train = service.train()
    return train.ranks if train and isinstance(train.ranks, int) else 1


def _firsts(service: ServicePlan, of_cpu: Mapping[int, Core]) -> set[int]:
    return {of_cpu[cpu].cpus.first() for cpu in service.cpus if cpu in of_cpu}


def _speed(service: ServicePlan, of_cpu: Mapping[int, Core]) -> float:
    processes = []
    for rank in service.ranks:
        cores = {of_cpu[cpu].cpus.first(): of_cpu[cpu] for cpu in rank.cpus if cpu in of_cpu}
        processes.append(process_speed(list(cores.values()), rank.threads + rank.loader_workers))
    return training_speed(processes) if service.service.train() else inference_speed(processes)
