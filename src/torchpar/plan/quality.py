"""Measures how good a plan is, as placement/quality.py does: for benchmarks and tests, and to compare two plans."""

from __future__ import annotations

from collections.abc import Mapping

from torchpar.conf.services import Config, Service
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.placement.cores import Core
from torchpar.placement.quality import (
    Ask,
    Quality,
    fair_shares,
    inference_speed,
    process_speed,
    total,
    training_speed,
)
from torchpar.placement.usable import auto_reserve, usable_before_reserve
from torchpar.plan.plan import Plan, ServicePlan


def plan_quality(plan: Plan, config: Config) -> float:
    """Measures the quality of a plan: 1 where every service has its fair share of the host."""
    return total(service_qualities(plan, config).values())


def service_qualities(plan: Plan, config: Config) -> Mapping[str, Quality]:
    """Measures what each service gets and what would be fair, by unit.

    Measured are those that compute on CPUs and are enabled, or all where none is: each then has the host for itself.
    Of a slot it is the first service, and none that names its CPUs or takes what others leave.
    """
    cores = usable_before_reserve(plan.facts, config.host.cpus)
    of_cpu = {cpu: core for core in cores for cpu in core.cpus}
    reserve = auto_reserve(cores, plan.facts) if config.host.reserve_cores is None else config.host.reserve_cores
    quota = None if plan.facts.cpu_limit is None else max(1, int(plan.facts.cpu_limit))
    services = [service for service in plan.services if service.service.settings.enabled]
    together = bool(services)
    services = _first_of_slots(services or list(plan.services))
    named = CpuSet.union(one.cpus for one in services if together and one.service.settings.cpus.is_explicit())
    free = [core for core in cores if core.cpus.isdisjoint(named)]
    if not free:
        return {}
    measured = [one for one in services if _is_measured(one)]
    asks = [ask_of(one.service) for one in measured]
    shared = any(one.service.settings.cpus.kind is CpuRequestKind.SHARED for one in services)
    if together:
        fair = fair_shares(free, asks, kept=reserve, shared=shared, quota=quota)
    else:
        fair = [fair_shares(free, [ask], kept=reserve, quota=quota)[0] for ask in asks]
    return {
        one.unit: Quality(_speed(one, of_cpu, quota), share)
        for one, share in zip(measured, fair, strict=True)
        if not one.gpus
    }


def ask_of(service: Service) -> Ask:
    """Says what a service asks for, as the measure sees it."""
    train, count = service.train(), service.settings.cpus.count
    ranks = train.ranks if train else 1
    return Ask(
        service.settings.weight,
        count,
        ranks if isinstance(ranks, int) else 1,
        by_node=ranks == "numa",
        trains=train is not None,
    )


def _is_measured(service: ServicePlan) -> bool:
    request = service.service.settings.cpus
    return not request.is_explicit() and request.kind is not CpuRequestKind.SHARED


def _first_of_slots(services: list[ServicePlan]) -> list[ServicePlan]:
    taken: dict[str, ServicePlan] = {}
    for service in services:
        taken.setdefault(service.service.settings.slot or service.unit, service)
    return list(taken.values())


def _speed(service: ServicePlan, of_cpu: Mapping[int, Core], quota: int | None) -> float:
    processes = []
    for rank in service.ranks:
        cores = {of_cpu[cpu].cpus.first(): of_cpu[cpu] for cpu in rank.cpus if cpu in of_cpu}
        processes.append(process_speed(list(cores.values()), rank.threads + rank.loader_workers))
    speed = training_speed(processes) if service.service.train() else inference_speed(processes)
    # Processes that are more than the quota have a part of a CPU each.
    return speed if quota is None else speed * min(1.0, quota / len(processes))
