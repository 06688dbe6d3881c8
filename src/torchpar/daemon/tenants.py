"""Reads between whom CPUs are divided: the services in force, ad-hoc jobs that run, and as what they started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torchpar.adhoc.plan import UNIT_PREFIX
from torchpar.arbitration.divide import Tenant, TenantRank
from torchpar.conf.parse import parse_config
from torchpar.conf.services import Kind, Service
from torchpar.conf.values import CpuRequestKind
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import JobSettingsError
from torchpar.contract.given import Given, GivenRank
from torchpar.contract.job import VARIABLE, RankSettings, parse_job_environment
from torchpar.facts.topology import HostFacts
from torchpar.generations.store import Store
from torchpar.plan.record import RankRecord, ServiceRecord


def read_declared(store: Store, facts: HostFacts) -> dict[str, Tenant]:
    """Reads the services in force, whether they run or not. Raises StoreError, ConfigError and ValueError."""
    active = store.active()
    if active is None:
        return {}
    content = active.read()
    config = parse_config(content.conf, facts)
    services = {service.unit: service for service in config.services}
    records = (record for record in content.services() if record.unit in services)
    return {record.unit: _as_tenant(record, services[record.unit]) for record in records}


def read_ad_hoc_jobs(read_properties: Callable[[str], Mapping[str, Any]], running: Iterable[str]) -> dict[str, Tenant]:
    """Reads the jobs of `torchpar run` that have a unit, which root alone can make, by their D-Bus properties."""
    tenants = {}
    for unit in running:
        if unit.startswith(UNIT_PREFIX):
            variables = read_properties(unit).get("Environment", ())
            told = dict(variable.partition("=")[::2] for variable in variables).get(VARIABLE)
            # What is no number, or names no CPU, is not what torchpar writes.
            with contextlib.suppress(JobSettingsError, ValueError):
                if told and (job := parse_job_environment({VARIABLE: told})):
                    ranks = tuple(map(_as_rank, job.ranks))
                    tenants[unit] = Tenant(unit, ranks, fixed_threads=job.own_threads)
    return tenants


def as_started(tenant: Tenant, given: Given) -> Tenant:
    """Returns a service that runs with the plan that it was started with, and what it was given in this run.

    A newer plan holds from its next start on; whoever wants it now restarts the service.
    """
    ranks = tenant.ranks
    if tuple(GivenRank(rank.cpus, rank.threads) for rank in ranks) != given.planned:
        ranks = ranks_of(given)
    return replace(tenant, ranks=ranks, held=given.cpus)


def ranks_of(given: Given) -> tuple[TenantRank, ...]:
    """Returns the ranks that a service was started with."""
    return tuple(TenantRank(rank.cpus, rank.threads) for rank in given.planned)


def _as_tenant(record: ServiceRecord, service: Service) -> Tenant:
    settings = service.settings
    keeps = settings.enabled and settings.cpus.kind is not CpuRequestKind.SHARED
    return Tenant(
        record.unit,
        tuple(map(_as_rank, record.ranks)),
        weight=settings.weight,
        keeps=keeps,
        stays=keeps,
        # Requests wait for no other process, and the weights stay where they are.
        equal_ranks=service.kind is Kind.TRAIN,
        lends=settings.lend,
        borrows=settings.borrow,
        allowed=record.cpuset,
        fixed_threads=settings.threads is not None,
        gpus=record.gpus,
    )


def _as_rank(rank: RankRecord | RankSettings) -> TenantRank:
    cpus, loader_workers = rank.cpus, rank.loader_workers
    cpus = CpuSet.parse(cpus) if isinstance(cpus, str) else cpus
    if not cpus:
        raise ValueError("a rank without CPUs")
    return TenantRank(cpus, rank.threads, loader_workers, rank.budget)
