"""Reads back what holds in a job's process, from torch and the kernel, never from the plan.

Told to people as one line in the journal, and to torchpar as a file in the service's RuntimeDirectory=.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Any

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.journal import Priority, say
from torchpar.contract.reports import RankReport, make_rank_json, rank_file


def observe(torch: Any, local_rank: int) -> RankReport:
    """Reports what is true of this process."""
    return RankReport(
        pid=os.getpid(),
        local_rank=local_rank,
        torch=str(torch.__version__),
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        cpus=str(CpuSet(os.sched_getaffinity(0))),
        allocator=_allocator(),
        world_size=_world_size(),
    )


def _world_size() -> int | None:
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdecimal() and len(text) < 10 else None


def tell(report: RankReport) -> None:
    """Writes one line to the journal, and rank-N.json to the service's RuntimeDirectory= if it has one."""
    say_report(report)
    write_report(report)


def say_report(report: RankReport) -> None:
    """Writes one line to the journal."""
    threads = report.threads
    say(
        f"torch {report.torch}, {threads} thread{'' if threads == 1 else 's'}, {report.interop_threads} interop,"
        f" CPUs {report.cpus}, allocator {report.allocator}"
    )


def write_report(report: RankReport) -> None:
    """Writes rank-N.json to the service's RuntimeDirectory= if it has one."""
    # systemd separates several directories by colons.
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if directory:
        path = os.path.join(directory, rank_file(report.local_rank))
        try:
            _write_whole(path, make_rank_json(report))
        except OSError as error:
            say(
                f"{path}: cannot be written: {error.strerror}; torchpar verify will not know this process's threads",
                Priority.WARNING,
            )


def _write_whole(path: str, text: str) -> None:
    """Writes a file so that its readers see all of it or none."""
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(temporary, path)


def _allocator() -> str:
    """Returns the malloc in force: "jemalloc", "tcmalloc", "glibc", or the file name of another library.

    That is the mapped file which the dynamic linker takes the symbols from; a library that merely is mapped may not be.
    `malloc` itself will not do: in Debian's python3, which is no position-independent executable, its address is in
    the program. `malloc_usable_size` is in every allocator and not used by Python.
    """
    address = ctypes.cast(ctypes.CDLL(None).malloc_usable_size, ctypes.c_void_p).value or 0
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        return allocator_at(address, maps)


def allocator_at(address: int, maps: Iterable[str]) -> str:
    """Returns the allocator that an address in /proc/PID/maps belongs to."""
    for line in maps:
        fields = line.split(None, 5)
        first, _, end = fields[0].partition("-")
        if int(first, 16) <= address < int(end, 16):
            name = os.path.basename(fields[5].strip()) if len(fields) == 6 else "unknown"
            for library, allocator in (("libjemalloc", "jemalloc"), ("libtcmalloc", "tcmalloc"), ("libc.so", "glibc")):
                if name.startswith(library):
                    return allocator
            return "glibc" if name.startswith("libc-") else name
    return "unknown"
