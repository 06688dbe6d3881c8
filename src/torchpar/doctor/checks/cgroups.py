"""Checks whether the limits and sets of CPUs that units name have an effect here: the controllers of control groups."""

from __future__ import annotations

from collections.abc import Iterator

from torchpar.doctor.check import check
from torchpar.doctor.conditions import IN_FORCE, RUNNING, SYSTEMD
from torchpar.doctor.finding import Finding, fail, not_applicable, note, warn
from torchpar.doctor.host import Host
from torchpar.doctor.words import share

_CONTROLLERS = "sys/fs/cgroup/cgroup.controllers"
_CURE = (
    "in a container: give it the controllers (Delegate=yes on its unit); else see systemd.unified_cgroup_hierarchy and"
    " cgroup_disable in /proc/cmdline"
)
_SLIGHT, _HARD = 0.01, 0.1


def _lacks(host: Host, controller: str) -> bool:
    """Says whether this host has control groups v2 without a controller."""
    controllers = host.tree.text(_CONTROLLERS)
    return controllers is not None and controller not in controllers.split()


@check(
    "cg.unified",
    passed="control groups are of version 2",
    where=SYSTEMD,
    source="systemd.resource-control(5): AllowedCPUs= needs the unified hierarchy",
)
def unified(host: Host) -> Iterator[Finding]:
    """Finds control groups of version 1, where systemd sets no AllowedCPUs= and no MemoryHigh=."""
    if host.tree.exists("sys/fs/cgroup") and not host.tree.exists(_CONTROLLERS):
        yield warn(
            "control groups are of version 1: AllowedCPUs=, AllowedMemoryNodes= and MemoryHigh= have no effect",
            f"there is no /{_CONTROLLERS}",
            "start the kernel without systemd.unified_cgroup_hierarchy=0, see /proc/cmdline and /etc/default/grub",
        )


@check(
    "cg.cpuset",
    passed="no process can leave the CPUs of its service",
    where=IN_FORCE,
    source="pytorch/pytorch#28389: a job resets its affinity; a cpuset holds it",
)
def cpuset(host: Host) -> Iterator[Finding]:
    """Finds the cpuset controller missing: CPUAffinity= is then in force alone, and a process can undo it."""
    if _lacks(host, "cpuset"):
        yield note(
            "AllowedCPUs= has no effect: services start on their CPUs, and a process that resets its mask leaves them",
            f"/{_CONTROLLERS} has no cpuset",
            _CURE,
        )


@check(
    "cg.memory",
    passed="limits of memory have an effect",
    where=SYSTEMD,
    source="systemd.resource-control(5)",
)
def memory(host: Host) -> Iterator[Finding]:
    """Finds MemoryMax= or MemoryHigh= of a service where the memory controller is not there."""
    limited = [each.title for each in host.services if each.declared and each.declared.settings.memory_limits()]
    if limited and _lacks(host, "memory"):
        yield fail(
            f"MemoryMax= and MemoryHigh= have no effect ({', '.join(limited)})", f"/{_CONTROLLERS} has no memory", _CURE
        )


@check(
    "cg.cpu",
    passed="weights of CPU time have an effect",
    where=SYSTEMD,
    source="systemd.resource-control(5)",
)
def cpu(host: Host) -> Iterator[Finding]:
    """Finds CPUWeight= of a service, or CPUQuota= of an override, where the CPU controller is not there."""
    weighted = [each.title for each in host.services if each.declared and each.declared.settings.cpu_weight]
    quota = [
        each.title for each in host.services if each.properties.get("CPUQuotaPerSecUSec", "infinity") != "infinity"
    ]
    if _lacks(host, "cpu"):
        for key, titles in (("CPUWeight=", weighted), ("CPUQuota=", quota)):
            if titles:
                yield fail(f"{key} has no effect ({', '.join(titles)})", f"/{_CONTROLLERS} has no cpu", _CURE)


@check(
    "cg.throttle",
    passed="no CPU quota has stopped a service for long",
    where=RUNNING,
    source="Documentation/scheduler/sched-bwc.rst",
)
def throttle(host: Host) -> Iterator[Finding]:
    """Finds services that a quota has stopped in more than one of a hundred periods."""
    if not any(each.running and each.running.throttled is not None for each in host.services):
        yield not_applicable("no CPU quota applies to a service that runs")
    for service in host.services:
        running = service.running
        if running is None or not running.throttled or running.throttled < _SLIGHT * running.periods:
            continue
        make = fail if running.throttled > _HARD * running.periods else warn
        yield make(
            f"a CPU quota has stopped {service.title} in {share(running.throttled, running.periods)} of its periods",
            f"cpu.stat: nr_throttled {running.throttled}, nr_periods {running.periods}",
            f"remove CPUQuota= where it is set: systemctl cat {service.unit} torchpar.slice",
        )
