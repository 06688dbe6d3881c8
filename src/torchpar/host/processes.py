"""Reads the processes of a unit from its control group and /proc.

Whatever a job does there, the answer comes within seconds and says what is missing in it. A process that ends meanwhile
is left out; what only root may read is None. Sources: proc(5), numa(7) for numa_maps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from torchpar.cpuset import CpuSet
from torchpar.host.proc import ProcReader, TooLateError, TooLongError
from torchpar.host.reading import NotReadableError, Reader
from torchpar.shape import ShapeError, parse_json, shape
from torchpar.verify import Process, RunningUnit

T = TypeVar("T")

# For all processes of a unit. One of eight ranks with their loader workers takes less than a second.
SECONDS = 5.0
# Times that, and a thread that the kernel holds is left alone: a process may have its memory locked for long.
_GRACE = 1.2

# Where systemd's own hierarchy can be: unified, hybrid, and cgroup v1.
_HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")
_RANKS = Path("/run/torchpar-jobs")
_MOST_RANKS = 1024  # of one unit
_MOST_FILES = 2**14  # in the folder of its ranks, in which it may make any
_MOST_GROUPS = 1024  # below its own, where Delegate= lets it make some

# A mapping that begins with its address, and the policy. A path in the line has no line break and no space
# (seq_file_path() in the kernel), but any other byte.
_POLICY = re.compile(rb"^[0-9a-f]+ ([a-z=:,0-9()-]{1,80})", re.MULTILINE)
_PAGES = re.compile(rb" N([0-9]{1,4})=([0-9]{1,18})\b")
_ALLOCATORS = re.compile(rb"/lib(jemalloc|tcmalloc)[^/\n]*\.so")


def read_running_unit(
    unit: str,
    main_pid: int,
    control_group: str,
    *,
    variables: Collection[str] = (),
    seconds: float = SECONDS,
    proc: str = "/proc",
) -> RunningUnit:
    """Everything that verify compares of a unit that runs, with these variables of its main process."""
    group = _find_group(control_group)
    # cpu.stat always exists; the counters of a quota only where the CPU controller is there.
    counters = dict(line.split(" ", 1) for line in (_text(f"{group}/cpu.stat") or "").splitlines() if " " in line)
    throttled = counters.get("nr_throttled")
    look = _Look(unit, main_pid, group, frozenset(variables), ProcReader(seconds, proc))
    try:
        Reader(_GRACE * seconds).do(look.take)
    except NotReadableError:
        look.unread = f"its processes have not answered within {seconds:g} s"
    return RunningUnit(
        unit=unit,
        main_pid=main_pid,
        # A copy: a thread that the kernel holds may come back.
        processes=tuple(look.processes),
        has_numa=os.path.exists("/proc/self/numa_maps"),
        cpuset=_cpuset(f"{group}/cpuset.cpus.effective"),
        throttled=None if throttled is None else int(throttled),
        periods=int(counters.get("nr_periods", "0")),
        ranks=tuple(look.ranks),
        unread=look.unread,
    )


class _Look:
    """One look at the processes of a unit, and how far it came. The main process is first, then those of the ranks."""

    def __init__(
        self, unit: str, main_pid: int, group: str | None, variables: frozenset[str], proc: ProcReader
    ) -> None:
        self.processes: list[Process] = []
        self.ranks: list[dict[str, int]] = []
        self.unread = ""
        self._unit, self._main_pid, self._group = unit, main_pid, group
        self._variables, self._proc = variables, proc

    def take(self) -> None:
        try:
            self.ranks += _read_ranks(self._unit)
            pids = self._pids()
            first = [pid for pid in (self._main_pid, *(rank["pid"] for rank in self.ranks)) if pid in pids]
            for pid in dict.fromkeys([*first, *sorted(pids)]):
                process = self._read(pid)
                if process:
                    self.processes.append(process)
        except TooLateError:
            self.unread = "it has more processes, threads or mappings than can be read in time"

    def _pids(self) -> set[int]:
        if not self._group:
            return {self._main_pid}
        pids = set()
        try:
            for pid in _pids(self._group, self._proc):
                pids.add(pid)
        except TooLongError:
            self.unread = "it has more control groups or processes than can be listed"
        return pids

    def _read(self, pid: int) -> Process | None:
        proc = self._proc
        threads = _unless_denied(lambda: read_threads(proc, pid))
        if threads is not None and not threads:
            return None
        maps = self._whole(f"{pid}/maps")
        numa = self._whole(f"{pid}/numa_maps")
        environment = self._whole(f"{pid}/environ") if pid == self._main_pid else None
        return Process(
            pid=pid,
            threads=threads,
            policies=None if numa is None else Counter(word.decode() for word in _POLICY.findall(numa)),
            pages=None if numa is None else _pages(numa),
            allocator=None if maps is None else _allocator(maps),
            environment=None if environment is None else _variables(environment, self._variables),
            cpu_seconds=_read_cpu_seconds(proc, pid) if maps is not None and b"/libtorch" in maps else {},
        )

    def _whole(self, name: str) -> bytes | None:
        """A file of a process; None where it is denied or has no end."""
        try:
            return self._proc.read(name)
        except TooLongError:
            self.unread = "the list of its mappings or variables is too long to be read"
        except OSError:
            pass
        return None


def _find_group(control_group: str) -> str | None:
    if not control_group:
        return None
    return next((root + control_group for root in _HIERARCHIES if os.path.isdir(root + control_group)), None)


def _pids(group: str, proc: ProcReader) -> Iterator[int]:
    """The processes of a control group and of those below it."""
    folders = [group]
    for _ in range(_MOST_GROUPS):
        if not folders:
            return
        folder = folders.pop()
        with contextlib.suppress(OSError):
            # A group of threads has none (EOPNOTSUPP): its processes are in the one above.
            yield from map(int, proc.read(f"{folder}/cgroup.procs").split())
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            folders += (entry.path for entry in itertools.islice(entries, _MOST_FILES) if entry.is_dir())
    raise TooLongError


def _read_cpu_seconds(proc: ProcReader, pid: int) -> dict[int, float]:
    """The CPU time of each thread, utime and stime of proc(5)."""
    seconds = {}
    with contextlib.suppress(OSError):
        for tid in proc.numbers(f"{pid}/task"):
            # The name before it may hold anything.
            fields = proc.read(f"{pid}/task/{tid}/stat").rpartition(b")")[2].split()
            if len(fields) > 12:
                seconds[tid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
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


def _pages(numa_maps: bytes) -> dict[int, int]:
    pages: Counter[int] = Counter()
    for node, count in _PAGES.findall(numa_maps):
        pages[int(node)] += int(count)
    return pages


def _allocator(maps: bytes) -> str:
    match = _ALLOCATORS.search(maps)
    return match[1].decode() if match else "glibc"


def _variables(environ: bytes, names: Iterable[str]) -> dict[str, str]:
    """Those of these names. None at all where the process has overwritten them: with zeros, and with a long name."""
    wanted = {os.fsencode(name) for name in names}
    found = {}
    for assignment in environ.split(b"\0"):
        name, equals, value = assignment.partition(b"=")
        if equals and name in wanted:
            found[os.fsdecode(name)] = os.fsdecode(value)
    return found


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
    """A file that the kernel alone writes."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(65536)
    except OSError:
        return None
