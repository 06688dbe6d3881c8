"""Reads the processes of a unit from its control group and /proc.

Whatever a job does there, the answer comes within seconds and says what is missing in it. A process that ends meanwhile
is left out; what only root may read is None. Sources: proc(5), numa(7) for numa_maps.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.reports import RankReport
from torchpar.facts.running import Process, RunningUnit
from torchpar.host.job_folder import read_rank_reports
from torchpar.host.proc import ProcReader, TooLateError, TooLongError
from torchpar.host.reading import NotReadableError, Reader
from torchpar.host.threads import MOST_THREADS, ThreadReader, read_cpu_seconds

T = TypeVar("T")

# For all processes of a unit. One of eight ranks with their loader workers takes less than a second.
SECONDS = 5.0
# Times that, and a thread that the kernel holds is left alone: a process may have its memory locked for long.
_GRACE = 1.2

# Where systemd's own hierarchy can be: unified, hybrid, and cgroup v1.
_HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")
_ONLINE = "/sys/devices/system/cpu/online"
# Below its own, where Delegate= lets it make some; and the entries of one.
_MOST_GROUPS = 1024
_MOST_ENTRIES = 2**14

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
    """Reads everything that verify compares of a unit that runs, with these variables of its main process."""
    group = find_group(control_group)
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
        online_cpus=_cpuset(_ONLINE),
    )


class _Look:
    """One look at the processes of a unit, and how far it came. The main process is first, then those of the ranks."""

    def __init__(
        self, unit: str, main_pid: int, group: str | None, variables: frozenset[str], proc: ProcReader
    ) -> None:
        self.processes: list[Process] = []
        self.ranks: list[RankReport] = []
        self.unread = ""
        self._unit, self._main_pid, self._group = unit, main_pid, group
        self._variables, self._proc, self._threads = variables, proc, ThreadReader(proc)

    def take(self) -> None:
        try:
            self.ranks += read_rank_reports(self._unit)
            pids = self._pids()
            first = [pid for pid in (self._main_pid, *(rank.pid for rank in self.ranks)) if pid in pids]
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
            for pid in group_pids(self._group, self._proc):
                pids.add(pid)
                if len(pids) >= MOST_THREADS:
                    raise TooLongError
        except TooLongError:
            self.unread = "it has more control groups or processes than can be listed"
        return pids

    def _read(self, pid: int) -> Process | None:
        proc = self._proc
        threads = self._known(lambda: self._threads.read(pid))
        runnable = self._threads.runnable
        if threads is not None and not threads:
            return None
        mapped = self._known(lambda: _read_libraries(proc, pid))
        numa = self._known(lambda: _read_numa(proc, pid))
        main = pid == self._main_pid
        return Process(
            pid=pid,
            threads=threads,
            policies=None if numa is None else numa[0],
            pages=None if numa is None else numa[1],
            allocator=None if mapped is None else mapped[0],
            environment=self._known(lambda: _read_variables(proc, pid, self._variables)) if main else None,
            cpu_seconds=read_cpu_seconds(proc, pid) if mapped is not None and mapped[1] else {},
            runnable_threads=runnable,
        )

    def _known(self, read: Callable[[], T]) -> T | None:
        """Reads something of a process; None where that is denied or has no end."""
        try:
            return read()
        except TooLongError:
            self.unread = "the list of its threads, mappings or variables is too long to be read"
        except OSError:
            pass
        return None


def read_cpuset(control_group: str) -> CpuSet | None:
    """Reads the CPUs that a control group allows its processes; None where no controller limits them."""
    group = find_group(control_group)
    return _cpuset(f"{group}/cpuset.cpus.effective") if group else None


def find_group(control_group: str) -> str | None:
    """Finds the folder of a control group by its path in systemd's hierarchy; None where there is none."""
    if not control_group:
        return None
    return next((root + control_group for root in _HIERARCHIES if os.path.isdir(root + control_group)), None)


def group_pids(group: str, proc: ProcReader) -> Iterator[int]:
    """Yields the processes of a control group and of those below it. Raises TooLongError, TooLateError and OSError."""
    folders = [group]
    for _ in range(_MOST_GROUPS):
        if not folders:
            return
        folder = folders.pop()
        with contextlib.suppress(OSError):
            # A group of threads has none (EOPNOTSUPP): its processes are in the one above.
            for lines in proc.pieces(f"{folder}/cgroup.procs", b"\n"):
                yield from map(int, lines.split())
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            folders += (entry.path for entry in itertools.islice(entries, _MOST_ENTRIES) if entry.is_dir())
    raise TooLongError


def _read_numa(proc: ProcReader, pid: int) -> tuple[Counter[str], dict[int, int]]:
    """Counts the mappings with each policy, and the pages on each NUMA node."""
    policies, pages = Counter[str](), Counter[int]()
    for lines in proc.pieces(f"{pid}/numa_maps", b"\n"):
        policies.update(match[1].decode() for match in _POLICY.finditer(lines))
        for match in _PAGES.finditer(lines):
            pages[int(match[1])] += int(match[2])
    return policies, pages


def _read_libraries(proc: ProcReader, pid: int) -> tuple[str, bool]:
    """Reads which malloc a process has, and whether it has torch."""
    allocator, torch = "", False
    for lines in proc.pieces(f"{pid}/maps", b"\n"):
        match = None if allocator else _ALLOCATORS.search(lines)
        allocator = match[1].decode() if match else allocator
        torch = torch or b"/libtorch" in lines
    return allocator or "glibc", torch


def _read_variables(proc: ProcReader, pid: int, names: Collection[str]) -> dict[str, str]:
    """Reads variables of these names. None where the process has overwritten them: with zeros, or a long name."""
    found: dict[str, str] = {}
    if not names:
        return found
    wanted = b"|".join(re.escape(os.fsencode(name)) for name in names)
    # Not by split(): eight million zeros would be as many empty variables.
    assignment = re.compile(rb"(?:\A|\0)(" + wanted + rb")=([^\0]*)")
    for variables in proc.pieces(f"{pid}/environ", b"\0"):
        found |= {os.fsdecode(match[1]): os.fsdecode(match[2]) for match in assignment.finditer(variables)}
    return found


def _cpuset(path: str) -> CpuSet | None:
    text = (_text(path) or "").strip()
    return CpuSet.parse(text) if text else None


def _text(path: str) -> str | None:
    """Reads a file that the kernel alone writes."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(65536)
    except OSError:
        return None
