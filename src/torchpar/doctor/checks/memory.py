"""Checks memory: swap, shared memory, what services may take together, and what happened where there was none left."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from torchpar.conf.values import memory_bytes
from torchpar.doctor.check import check
from torchpar.doctor.conditions import LOGIN_USERS, RUNNING, SERVICES, TRAINING_HERE
from torchpar.doctor.finding import Finding, fail, not_applicable, note, unknown, warn
from torchpar.doctor.host import Host, Service
from torchpar.doctor.words import size

_SHM = "/dev/shm"
_LEAST_SHM = 2**30
# Files of torch's sharing strategy file_system: torch_PID_RANDOM_NUMBER.
_OF_TORCH = re.compile(r"torch_(\d{1,9})_\w+")
# The users that log in: UID_MIN and UID_MAX of login.defs(5).
_FIRST_LOGIN, _NOBODY = 1000, 60000
# In percent of a minute.
_SLOW, _STUCK = 10.0, 40.0


@check(
    "mem.swap",
    passed="there is swap, so that a job that needs a little too much is slow before it is killed",
    where=SERVICES,
    source="Documentation/admin-guide/mm/concepts.rst (OOM killer)",
)
def swap(host: Host) -> Iterator[Finding]:
    """Finds a host without swap."""
    text = host.tree.text("proc/swaps")
    if text is not None and len(text.splitlines()) < 2:
        yield note(
            "there is no swap: a job that needs a little more than there is gets killed at once",
            "/proc/swaps has no line",
            "fallocate -l 8G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile; for each boot"
            " the line '/swapfile none swap sw 0 0' in /etc/fstab",
        )


@check(
    "mem.limits",
    passed="the enabled services fit into memory together",
    where=SERVICES,
    source="systemd.resource-control(5): MemoryMax= is a limit, and reserves nothing",
)
def limits(host: Host) -> Iterator[Finding]:
    """Finds enabled services whose MemoryMax= come to more than the host's memory."""
    total = host.facts.memory_bytes
    amounts = {
        each.title: memory_bytes(each.declared.settings.memory_max, total) or 0
        for each in host.services
        if each.declared and each.declared.settings.enabled and each.declared.settings.memory_max
    }
    together = sum(amounts.values())
    if total and together > total and len(amounts) > 1:
        yield warn(
            f"the enabled services may take {size(together)} of {size(total)}, and the kernel then kills one",
            "MemoryMax= of " + ", ".join(f"{title}: {size(amount)}" for title, amount in amounts.items()),
            "lower MemoryMax= of one of them in torchpar.conf, then: torchpar apply",
        )


@check(
    "mem.pressure",
    passed="no service waits for memory",
    where=RUNNING,
    source="Documentation/accounting/psi.rst; NVIDIA/srt-slurm#415",
)
def pressure(host: Host) -> Iterator[Finding]:
    """Finds services that waited for memory for more than a tenth of the last minute."""
    told = _told(host, "memory.pressure")
    if not told:
        yield not_applicable("the kernel counts no pressure on memory of services")
    for service, text in told:
        match = re.search(r"^some .*\bavg60=([0-9]{1,3}\.[0-9]+)", text, re.MULTILINE)
        percent = float(match[1]) if match else 0.0
        if percent > _SLOW:
            make = fail if percent > _STUCK else warn
            yield make(
                f"{service.title} waited for memory in {percent:.0f} % of the last minute",
                f"memory.pressure of its control group: avg60={percent}",
                f"raise or remove MemoryMax= and MemoryHigh= of {service.section}, or run less beside it",
            )


@check(
    "mem.oom",
    passed="the kernel has killed no process of a service for want of memory",
    where=RUNNING,
    source="Documentation/admin-guide/cgroup-v2.rst: memory.events",
)
def oom(host: Host) -> Iterator[Finding]:
    """Finds running services of which the kernel has killed a process."""
    told = _told(host, "memory.events")
    if not told:
        yield not_applicable("there is no memory controller for services")
    for service, text in told:
        counters = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
        killed = counters.get("oom_kill", "0")
        if killed.isdecimal() and int(killed):
            yield fail(
                f"{service.title} has lost {killed} processes to the OOM killer since it started",
                f"memory.events of its control group: oom_kill {killed}",
                f"raise MemoryMax= of {service.section}, or use smaller batches or fewer loader workers",
            )


@check(
    "shm.size",
    passed="/dev/shm has room for what loader workers hand over",
    where=TRAINING_HERE,
    source="pytorch/pytorch#26009: Bus error, or unable to open shared memory object",
)
def shm_size(host: Host) -> Iterator[Finding]:
    """Finds /dev/shm missing, closed, small or nearly full."""
    if host.tree.mode("dev/shm") is None:
        yield fail(
            "there is no /dev/shm: DataLoader workers cannot hand over a batch",
            _SHM,
            "",
            f"mkdir -m 1777 {_SHM} && mount -t tmpfs -o nosuid,nodev tmpfs {_SHM}",
        )
        return
    if (mode := host.tree.mode("dev/shm")) is not None and mode & 0o1777 != 0o1777:
        yield fail(f"/dev/shm is closed to services: it has mode {mode:04o}, not 1777", _SHM, "", f"chmod 1777 {_SHM}")
    disk = host.doors.disk(_SHM)
    if disk is None:
        yield unknown("the file system of /dev/shm does not answer", "see: df /dev/shm")
        return
    evidence = f"df /dev/shm: {size(disk.free)} of {size(disk.size)} free"
    if disk.size < _LEAST_SHM and (host.facts.memory_bytes or 0) > 2 * _LEAST_SHM:
        yield warn(
            "/dev/shm is small: loader workers that hand over large batches end with a bus error",
            evidence,
            "for each boot the line 'tmpfs /dev/shm tmpfs nosuid,nodev,size=50% 0 0' in /etc/fstab",
            f"mount -o remount,size=50% {_SHM}",
        )
    elif disk.free < min(_LEAST_SHM, disk.size // 10):
        yield warn(
            "/dev/shm is nearly full: loader workers that hand over batches end with a bus error",
            evidence,
            "see whose it is, and remove what nobody has open: ls -lS /dev/shm; fuser -v /dev/shm/*",
        )


@check(
    "shm.leftovers",
    passed="no file of torch in /dev/shm is of a process that has ended",
    where=TRAINING_HERE,
    source="torch.multiprocessing: sharing strategy file_system leaks shared memory files when processes are killed",
)
def shm_leftovers(host: Host) -> Iterator[Finding]:
    """Finds files of torch's whose process has ended, as far as this PID namespace tells.

    A container that shares /dev/shm has PIDs of its own, and another process may still have the file mapped: only
    fuser(1) knows.
    """
    left = [
        name
        for name in host.tree.names("dev/shm")
        if (match := _OF_TORCH.fullmatch(name)) and not host.tree.exists(f"proc/{match[1]}")
    ]
    if left:
        yield note(
            f"{len(left)} files of torch in /dev/shm seem left by killed jobs, and take memory until they are removed",
            f"{_SHM}/{left[0]}: there is no such process here; a container's may have another number here",
            f"see who has them open, and remove those that nobody has: fuser -v {_SHM}/torch_*",
        )


@check(
    "ipc.remove",
    passed="logind leaves alone what jobs have in /dev/shm when their user logs out",
    where=LOGIN_USERS,
    source="logind.conf(5): RemoveIPC=yes is the default; mlcommons/storage#528",
)
def ipc_remove(host: Host) -> Iterator[Finding]:
    """Finds services of users that log in, whose shared memory logind removes when they log out."""
    tree = host.tree
    if not tree.exists("usr/lib/systemd/systemd-logind") or not _removes_ipc(host):
        return
    passwd = tree.text("etc/passwd")
    if passwd is None:
        yield unknown("/etc/passwd cannot be read")
        return
    numbers = {fields[0]: fields[2] for line in passwd.splitlines() if len(fields := line.split(":")) > 3}
    for user in dict.fromkeys(_user(each) for each in host.services):
        number = numbers.get(user, "")
        lingers = tree.exists(f"var/lib/systemd/linger/{user}")
        if number.isdecimal() and _FIRST_LOGIN <= int(number) < _NOBODY and not lingers:
            titles = ", ".join(each.title for each in host.services if _user(each) == user)
            yield warn(
                f"when {user} logs out, logind removes the shared memory of {titles}, which then fail",
                f"RemoveIPC=yes in force, and {user} is a user that logs in ({number})",
                "",
                f"loginctl enable-linger {shlex.quote(user)}",
            )


def _user(service: Service) -> str:
    return (service.declared.settings.user if service.declared else None) or "torchpar"


def _removes_ipc(host: Host) -> bool:
    """Reads RemoveIPC= of logind.conf(5), the last one counts."""
    value = "yes"
    folders = ("usr/lib/systemd/logind.conf.d", "run/systemd/logind.conf.d", "etc/systemd/logind.conf.d")
    drop_ins = {name: f"{folder}/{name}" for folder in folders for name in host.tree.names(folder)}
    for path in ("etc/systemd/logind.conf", *(drop_ins[name] for name in sorted(drop_ins) if name.endswith(".conf"))):
        for line in (host.tree.text(path) or "").splitlines():
            if match := re.fullmatch(r"\s*RemoveIPC\s*=\s*(\w+)\s*", line):
                value = match[1].lower()
    return value in ("yes", "true", "1", "on", "y", "t")


def _told(host: Host, name: str) -> tuple[tuple[Service, str], ...]:
    """Reads a file of the control group of each service that runs, where it has one."""
    groups = ((each, each.properties.get("ControlGroup", "")) for each in host.services if each.runs)
    found = ((each, host.tree.text(f"sys/fs/cgroup{group}/{name}")) for each, group in groups if group)
    return tuple((each, text) for each, text in found if text is not None)
