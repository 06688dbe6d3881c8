"""Checks the limits of services' processes: locked memory, open files, threads, and memory that is made executable."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchpar.doctor.check import check
from torchpar.doctor.conditions import RDMA, RUNNING, SYSTEMD, TRAINING
from torchpar.doctor.finding import Finding, fail, unknown, warn
from torchpar.doctor.host import Host, Service

_LEAST_FILES = 65536
_FULL = 0.8
# systemd prints "infinity", and the largest number of the kernel where it has one of its own.
_NO_LIMIT = ("", "infinity", "[not set]", str(2**64 - 1))


def _soft(host: Host, service: Service, name: str, directive: str) -> int | None:
    """Returns a soft limit: of the main process where it runs, else of the unit; None where there is none."""
    text = host.tree.text(f"proc/{service.properties['MainPID']}/limits") if service.runs else None
    match = re.search(rf"^{name}\s+(\d+|unlimited)", text or "", re.MULTILINE)
    value = match[1] if match else service.properties.get(directive, "")
    return int(value) if value.isdecimal() and value not in _NO_LIMIT else None


@check(
    "lim.memlock",
    passed="services may lock as much memory as RDMA needs",
    where=RDMA,
    source="ROCm/spur#449, NVIDIA/nccl-tests#206; systemd.exec(5): limits.conf(5) is not for services",
)
def memlock(host: Host) -> Iterator[Finding]:
    """Finds a limit on locked memory where there is an RDMA device, which registers whole buffers."""
    for service in host.services:
        amount = _soft(host, service, "Max locked memory", "LimitMEMLOCKSoft") if service.hosts > 1 else None
        if amount is not None:
            yield fail(
                f"{service.title} may lock {amount} bytes, and NCCL over RDMA fails with less than its buffers",
                "Max locked memory of its process" if service.runs else "LimitMEMLOCK= of its unit",
                f"write Service.LimitMEMLOCK=infinity into {service.section}, then: torchpar apply",
            )


@check(
    "lim.nofile",
    passed="training services may open enough files for their loader workers",
    where=TRAINING,
    source='MIC-DKFZ/nnUNet#1343: "Too many open files" of loader workers, which pass a descriptor for each tensor',
)
def nofile(host: Host) -> Iterator[Finding]:
    """Finds a low limit on open files of a service with loader workers."""
    few = {
        service: number
        for service in host.services
        if _has_loader_workers(service)
        and (number := _soft(host, service, "Max open files", "LimitNOFILESoft")) is not None
        and number < _LEAST_FILES
    }
    if not few:
        return
    service, number = min(few.items(), key=lambda item: item[1])
    of_unit = service.properties.get("LimitNOFILESoft", "")
    if of_unit.isdecimal() and int(of_unit) > number:
        # What systemd itself may not have it cannot give.
        cure = "systemd itself may have no more: raise the limit of the container, or see DefaultLimitNOFILE="
    else:
        cure = f"write Service.LimitNOFILE=1048576 into {service.section}, then: torchpar apply"
    yield warn(
        f"{', '.join(each.title for each in few)} may open {number} files, few for loader workers with many tensors",
        "Max open files of its process" if service.runs else "LimitNOFILE= of its unit",
        cure,
    )


def _has_loader_workers(service: Service) -> bool:
    """Says whether a job has more processes with torch than ranks, or the conf asks for loader workers."""
    ranks = service.record.ranks if service.record else ()
    computing = [each for each in (service.running.processes if service.running else ()) if each.cpu_seconds]
    return service.trains and (any(rank.loader_workers for rank in ranks) or len(computing) > max(1, len(ranks)))


@check(
    "lim.tasks",
    passed="no service is near its number of threads",
    where=RUNNING,
    source="systemd.resource-control(5): TasksMax=; OpenMathLib/OpenBLAS#3436",
)
def tasks(host: Host) -> Iterator[Finding]:
    """Finds services that have nearly as many threads as they may."""
    for service in host.services:
        now, most = service.properties.get("TasksCurrent", ""), service.properties.get("TasksMax", "")
        limited = now.isdecimal() and most.isdecimal() and most not in _NO_LIMIT
        if service.runs and limited and int(now) > _FULL * int(most):
            yield warn(
                f"{service.title} has {now} of at most {most} threads; the next may fail (EAGAIN)",
                f"TasksCurrent={now}, TasksMax={most}",
                f"write Service.TasksMax=infinity into {service.section}, then: torchpar apply",
            )


@check(
    "sec.mdwe",
    passed="services may make the code that oneDNN, inductor and Triton compile executable",
    where=SYSTEMD,
    source='pytorch/pytorch#143651: "could not create a primitive"',
)
def memory_deny_write_execute(host: Host) -> Iterator[Finding]:
    """Finds MemoryDenyWriteExecute=yes, by the conf or by an override."""
    for service in host.services:
        if service.properties.get("MemoryDenyWriteExecute") == "yes":
            in_conf = service.directive("MemoryDenyWriteExecute")
            where = f"Service.MemoryDenyWriteExecute= in {service.section}" if in_conf else "an override of its unit"
            yield fail(
                f"{service.title} cannot run code that is compiled as it runs: oneDNN, torch.compile and Triton fail",
                f"MemoryDenyWriteExecute=yes, by {where}",
                f"remove it (systemctl cat {service.unit} has the place), then: torchpar apply",
            )


@check(
    "lim.visible",
    passed="the processes of running services could be read",
    where=RUNNING,
    source="proc(5): who may look into a process",
)
def visible(host: Host) -> Iterator[Finding]:
    """Says which services could not be looked into, so that silence of other checks is not taken for health."""
    hidden = [
        each.title
        for each in host.services
        if each.runs and (each.running is None or any(p.allocator is None for p in each.running.processes))
    ]
    if hidden and not host.is_root:
        yield unknown(f"only root may look into the processes of {', '.join(hidden)}")
    for service in host.services:
        if service.running and service.running.unread and service.title not in hidden:
            yield unknown(f"{service.title}: {service.running.unread}", f"see: torchpar verify {service.title}")
