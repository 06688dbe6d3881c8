"""Checks the file systems that services write to: room for checkpoints, and whether compiled code may run there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from torchpar.contract.paths import STORE
from torchpar.doctor.check import check
from torchpar.doctor.conditions import LIVE, SERVICES, TRAINING_HERE
from torchpar.doctor.finding import Finding, fail, unknown, warn
from torchpar.doctor.host import Host, Service
from torchpar.doctor.words import size
from torchpar.facts.disk import Disk

_LEAST, _LEAST_SHARE = 2**30, 0.02
_FEW = 0.01


@check(
    "ckpt.space",
    passed="there is room where training services write",
    where=TRAINING_HERE,
    source="statvfs(3); a checkpoint that is written in part is lost, and the run with it",
)
def checkpoint_space(host: Host) -> Iterator[Finding]:
    """Finds file systems full, nearly full or read-only on which a training service has its folders."""
    told = set()
    for service in host.services:
        for path in _written(service) if service.trains else ():
            disk = host.doors.disk(path)
            if disk is None:
                yield unknown(
                    f"{path} cannot be looked at, or its file system does not answer",
                    f"as root: df {shlex.quote(path)}",
                )
            if disk is None or disk in told:
                continue
            told.add(disk)
            what = f"{service.title} cannot save a checkpoint"
            yield from _judge(disk, path, what, f"df -h {shlex.quote(path)}; then remove old checkpoints, or")


def _judge(disk: Disk, path: str, what: str, cure: str) -> Iterator[Finding]:
    free = f"{size(disk.free)} of {size(disk.size)} free"
    if disk.read_only:
        yield fail(
            f"{what}: the file system is read-only",
            f"{path}: mounted read-only",
            "see why, for example an error of the disk: dmesg --level=err; then: mount -o remount,rw",
        )
    elif disk.free == 0:
        yield fail(f"{what}: the file system is full", f"{path}: {free}", f"{cure} enlarge it")
    elif disk.free < min(_LEAST, _LEAST_SHARE * disk.size):
        yield warn(f"{what} soon: the file system is nearly full", f"{path}: {free}", f"{cure} enlarge it")
    if disk.inodes and disk.free_inodes < _FEW * disk.inodes:
        yield warn(
            f"{what} soon: the file system has room for few more files",
            f"{path}: {disk.free_inodes} of {disk.inodes} inodes free",
            f"find the folders with many files: du --inodes -xd2 {shlex.quote(path)} | sort -n | tail",
        )


def _written(service: Service) -> Iterator[str]:
    """Yields the folders that a service is known to write to."""
    settings = service.declared.settings if service.declared else None
    kind, _, name = service.title.partition("@")
    yield f"/var/lib/torchpar/{kind}/{name}"
    if settings:
        if settings.working_directory:
            yield settings.working_directory
        yield from (path.removeprefix("-") for path in settings.read_write_paths)


@check(
    "store.space",
    passed="there is room for generations and for the journal",
    where=LIVE,
    source="torchpar(8): apply writes a new generation before it flips the link",
)
def store_space(host: Host) -> Iterator[Finding]:
    """Finds the file system of the store full or read-only."""
    disk = host.doors.disk(STORE)
    if disk is None:
        yield unknown(f"the file system of {STORE} does not answer", f"see: df {STORE}")
    else:
        what = "torchpar apply cannot write a generation"
        yield from _judge(disk, STORE, what, f"df -h {STORE}; then remove files, or")


@check(
    "sec.noexec",
    passed="code that torch.compile and Triton make can run where they write it",
    where=SERVICES,
    source='dlopen(3): "failed to map segment from shared object"; mount(8): noexec',
)
def noexec(host: Host) -> Iterator[Finding]:
    """Finds a file system that nothing is run from where a service keeps compiled code."""
    mounts = _mounts(host)
    told = set()
    for service in host.services:
        for variable, path in _compiled(service):
            place = max((each for each in mounts if _is_below(path, each)), key=len, default=None)
            if place is None or "noexec" not in mounts[place] or (service.unit, place) in told:
                continue
            told.add((service.unit, place))
            yield warn(
                f"{service.title} cannot run what torch.compile and Triton write to {path}",
                f"{variable}: {path}; {place} is mounted noexec",
                f"name a folder elsewhere in {service.section}: Environment={variable}=/var/cache/..., and"
                f" ReadWritePaths= for it; or: mount -o remount,exec {place}",
            )


def _compiled(service: Service) -> Iterator[tuple[str, str]]:
    """Yields the folders of compiled code: where a variable leads, or torch's default below /tmp."""
    environment = service.environment
    kind, _, name = service.title.partition("@")
    own = service.declared is None or service.declared.confined
    default = f"/var/cache/torchpar/{kind}/{name}" if own else environment.get("TMPDIR", "/tmp")
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        path = environment.get(variable, default)
        # Triton's default is in the home of a user that has one.
        if path.startswith("/") and (own or variable in environment or variable == "TORCHINDUCTOR_CACHE_DIR"):
            yield variable, path


def _mounts(host: Host) -> dict[str, list[str]]:
    """Reads the options of each mount point; where two are on one place, the later one is seen."""
    found = {}
    for line in (host.tree.text("proc/self/mounts") or "").splitlines():
        fields = line.split(" ")
        if len(fields) > 3:
            place = re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), fields[1])
            found[place] = fields[3].split(",")
    return found


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")
