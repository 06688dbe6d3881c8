"""Checks the conf and the generation in force against each other and the host."""

from __future__ import annotations

from collections.abc import Iterator

from torchpar.contract.cpulist import CpuSet
from torchpar.doctor.check import check
from torchpar.doctor.conditions import ALWAYS, IN_FORCE, LIVE
from torchpar.doctor.finding import Finding, fail, not_applicable, note, unknown, warn
from torchpar.doctor.host import Host

_MOST = 5


@check("cfg.valid", passed="the conf is valid", where=ALWAYS, source="torchpar.conf(5)")
def valid(host: Host) -> Iterator[Finding]:
    """Finds mistakes in the conf."""
    for problem in host.conf_problems[:_MOST]:
        yield fail("the conf is invalid, so that no edit of it is put in force", problem, "see all: torchpar validate")


@check(
    "cfg.sync",
    passed="the conf is in force",
    where=LIVE,
    source="torchpar(8): an edit is in force once it is applied",
)
def in_sync(host: Host) -> Iterator[Finding]:
    """Finds a conf that is newer than what is in force, and services without anything in force."""
    if host.conf_state == "newer":
        yield warn(
            "the conf is newer than what is in force", "torchpar check", "see torchpar diff, then: torchpar apply"
        )
    if host.conf_state == "broken":
        yield not_applicable("the conf is broken, see cfg.valid; what was applied last stays in force")
    if host.conf_state == "unknown":
        yield unknown("whether the conf is in force cannot be told", "see: torchpar check")


@check(
    "cfg.cpus",
    passed="this host has the CPUs and accelerators that are in force",
    where=IN_FORCE,
    source="systemd drops an AllowedCPUs= without any CPU that is online, without a word",
)
def cpus(host: Host) -> Iterator[Finding]:
    """Finds services in force on CPUs, or with accelerators, that this host does not have or torchpar may not use."""
    has = {gpu.name for gpu in host.facts.accelerators()}
    for service in host.services:
        gone = service.cpus - (host.facts.online_cpus & host.facts.allowed_cpus)
        if gone:
            yield fail(
                f"{service.title} is planned for CPUs {gone}, which this host does not have, or not for it",
                f"online: {host.facts.online_cpus}; allowed to torchpar.slice: {host.facts.allowed_cpus}",
                f"plan anew: torchpar apply; then: systemctl restart {service.unit}",
            )
        lost = [gpu for gpu in (service.record.gpus if service.record else ()) if gpu not in has]
        if lost:
            yield fail(
                f"{service.title} is planned for accelerators that this host does not have",
                f"not there: {', '.join(lost)}",
                f"see: torchpar topology; plan anew: torchpar apply; then: systemctl restart {service.unit}",
            )


@check(
    "cfg.doubts",
    passed="what the kernel shows of this host makes sense",
    where=ALWAYS,
    source="torchpar topology; firmware that tells nonsense, and captures that are not whole",
)
def doubts(host: Host) -> Iterator[Finding]:
    """Finds facts that contradict each other, on which placement then does not rely."""
    for doubt in host.facts.doubts[:_MOST]:
        yield note("the kernel shows something that makes no sense", doubt, "what is done instead: torchpar topology")


@check(
    "cfg.unused",
    passed="declared services have all the cores that they could",
    where=IN_FORCE,
    source="torchpar.conf(5): a service with Enabled=yes holds CPUs also while it is stopped",
)
def unused(host: Host) -> Iterator[Finding]:
    """Finds enabled services that have failed or are masked, and hold cores on which nothing runs."""
    for service in host.services:
        dead = service.properties.get("ActiveState") == "failed" or service.properties.get("LoadState") == "masked"
        if dead and service.record and service.record.enabled and service.record.cpus != CpuSet():
            yield warn(
                f"{service.title} does not run and holds CPUs {service.record.cpus}, which no other service gets",
                "Enabled=yes, and it has failed or is masked",
                f"start it, or write Enabled=no into {service.section}, then: torchpar apply",
            )
