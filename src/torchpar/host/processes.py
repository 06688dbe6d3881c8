"""Reads the processes of a unit from its control group and /proc.

A process that ends meanwhile is left out; what only root may read is None. Sources: proc(5), numa(7) for numa_maps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from torchpar.cpuset import CpuSet
from torchpar.host.proc import ProcReader
from torchpar.shape import ShapeError, parse_json, shape
from torchpar.verify import Process, RunningUnit

T = TypeVar("T")

# Where systemd's own hierarchy can be: unified, hybrid, and cgroup v1.
_HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")
_RANKS = Path("/run/torchpar-jobs")
# Of a file below /proc or /sys: more than a process's mappings are, of which the kernel allows 65530 (max_map_count).
_LIMIT = 2**23
_MOST_RANKS = 1024  # of one unit
_MOST_FILES = 2**14  # in the folder of its ranks, in which it may make any
_ALLOCATORS = re.compile(r"/lib(jemalloc|tcmalloc)[^/]*\.so")


def read_running_unit(unit: str, main_pid: int, control_group: str) -> RunningUnit:
    """Everything that verify compares of a unit that runs."""
    group = _find_group(control_group)
    pids = _pids(group) if group else [main_pid]
    processes = tuple(process for pid in pids if (process := _read_process(pid)))
    counters = dict(line.split(" ", 1) for line in (_text(f"{group}/cpu.stat") or "").splitlines() if " " in line)
    # cpu.stat always exists; the counters of a quota only where the CPU controller is there.
    throttled = counters.get("nr_throttled")
    return RunningUnit(
        unit=unit,
        main_pid=main_pid,
        processes=processes,
        has_numa=os.path.exists("/proc/self/numa_maps"),
        cpuset=_cpuset(f"{group}/cpuset.cpus.effective"),
        throttled=None if throttled is None else int(throttled),
        periods=int(counters.get("nr_periods", "0")),
        ranks=tuple(_read_ranks(unit)),
    )


def _find_group(control_group: str) -> str | None:
    if not control_group:
        return None
    return next((root + control_group for root in _HIERARCHIES if os.path.isdir(root + control_group)), None)


def _pids(group: str) -> list[int]:
    pids = []
    for folder, _, _ in os.walk(group):
        pids += [int(pid) for pid in (_text(f"{folder}/cgroup.procs") or "").split()]
    return sorted(pids)


def _read_process(pid: int) -> Process | None:
    threads = _unless_denied(lambda: read_threads(ProcReader(60.0), pid))
    if threads is not None and not threads:
        return None
    maps = _unless_denied(lambda: _read(f"/proc/{pid}/maps"))
    numa = _unless_denied(lambda: _read(f"/proc/{pid}/numa_maps"))
    environment = _unless_denied(lambda: _read(f"/proc/{pid}/environ"))
    return Process(
        pid=pid,
        threads=threads,
        policies=None if numa is None else Counter(line.split(" ", 2)[1] for line in numa.splitlines() if " " in line),
        pages=None if numa is None else _pages(numa),
        allocator=None if maps is None else _allocator(maps),
        environment=None if environment is None else _variables(environment),
        cpu_seconds=_read_cpu_seconds(pid) if maps is not None and "/libtorch" in maps else {},
    )


def _read_cpu_seconds(pid: int) -> dict[int, float]:
    """The CPU time of each thread, utime and stime of proc(5)."""
    seconds = {}
    with contextlib.suppress(OSError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            # The name before it may hold anything.
            fields = _read(f"/proc/{pid}/task/{tid}/stat").rpartition(")")[2].split()
            seconds[int(tid)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def read_threads(proc: ProcReader, pid: int) -> dict[int, CpuSet]:
    """The allowed CPUs of each thread of a process. Raises TooLateError, TooLongError and OSError."""
    threads = {}
    try:
        for tid in proc.numbers(f"{pid}/task"):
            match = re.search(rb"^Cpus_allowed_list:\s*(\S+)", proc.read(f"{pid}/task/{tid}/status"), re.MULTILINE)
            if match:
                threads[tid] = CpuSet.parse(match[1].decode())
    except (FileNotFoundError, ProcessLookupError):
        # It, or one of its threads, has ended; what was read still counts.
        return threads
    return threads


def _pages(numa_maps: str) -> dict[int, int]:
    pages: Counter[int] = Counter()
    for node, count in re.findall(r"\bN(\d+)=(\d+)", numa_maps):
        pages[int(node)] += int(count)
    return pages


def _allocator(maps: str) -> str:
    match = _ALLOCATORS.search(maps)
    return match[1] if match else "glibc"


def _variables(environ: str) -> dict[str, str]:
    """None at all where the process has overwritten them: with zeros, and with the end of a long name."""
    return dict(assignment.split("=", 1) for assignment in environ.split("\0") if "=" in assignment)


def _read_ranks(unit: str) -> Iterator[dict[str, int]]:
    """What the ranks say of themselves. Whatever runs as the service's user can write there, so nothing is trusted."""
    folder = _RANKS / unit.removesuffix(".service")
    try:
        # Not by a glob, which lists the whole folder before it gives the first.
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MOST_FILES)]
    except OSError:
        return
    for name in sorted(name for name in names if re.fullmatch(r"rank-\d+\.json", name))[:_MOST_RANKS]:
        try:
            rank = shape(parse_json(_read_foreign(folder / name)), _Rank)
        except (OSError, ShapeError):
            continue
        yield dataclasses.asdict(rank)


@dataclasses.dataclass(frozen=True)
class _Rank:
    pid: int
    local_rank: int
    threads: int


def _read_foreign(path: Path) -> bytes:
    """The start of a regular file; a pipe must not hold whoever reads, a link must not lead elsewhere."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


def _cpuset(path: str) -> CpuSet | None:
    text = (_text(path) or "").strip()
    return CpuSet.parse(text) if text else None


def _unless_denied(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except OSError:
        return None


def _text(path: str) -> str | None:
    return _unless_denied(lambda: _read(path))


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(_LIMIT)
