"""Moves the threads of a unit that runs to other CPUs: sched_setaffinity(2) of each thread of each of its processes.

Not AllowedCPUs= of the unit, which systemd keeps as a drop-in that outlives the run and wins over the next plan; and
where the cpuset controller is missing, as in many containers, it does nothing. A thread that is started meanwhile has
the CPUs of the one that starts it, so this goes round until all are where they belong. A thread for which the job
itself has chosen CPUs keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.host.job_folder import read_rank_reports
from torchpar.host.proc import ProcReader, TooLateError, TooLongError
from torchpar.host.processes import find_group, group_pids
from torchpar.host.reading import NotReadableError, Reader

# For all threads of those units that are moved together; some thousand take a tenth of it.
SECONDS = 5.0
_GRACE = 1.2
# Threads that start threads while they are moved are met again.
_ROUNDS = 5
_MOST_PARENTS = 64


@dataclass(frozen=True)
class Move:
    """The CPUs that threads are to have (`to`), and the sets of those that are moved, which torchpar gave (`known`)."""

    known: Collection[CpuSet]
    to: CpuSet


@dataclass(frozen=True)
class UnitMove:
    """The move of a unit: of the processes of each rank, by local_rank, and of those that belong to none."""

    unit: str
    control_group: str
    ranks: Sequence[Move]
    others: Move


def move_unit(move: UnitMove, seconds: float = SECONDS, *, proc: str = "/proc") -> int:
    """Moves all threads of a unit; returns how many were elsewhere. Raises OSError where that is not permitted.

    What ends meanwhile is left out, and what cannot be done in time is for the next time.
    """
    mover = _Mover(move, ProcReader(seconds, proc))
    try:
        Reader(_GRACE * seconds).do(mover.go_round)
    except (NotReadableError, TooLateError, TooLongError):
        pass
    if mover.refused:
        raise mover.refused
    return mover.moved


class _Mover:
    def __init__(self, move: UnitMove, proc: ProcReader) -> None:
        self.moved = 0
        self.refused: OSError | None = None
        self._move, self._proc = move, proc
        self._group = find_group(move.control_group)

    def go_round(self) -> None:
        for _ in range(_ROUNDS if self._group else 0):
            before = self.moved
            ranks = self._ranks()
            for pid in list(group_pids(self._group or "", self._proc)):
                # The number may be another process's by now: the list was made up to seconds ago.
                if self._is_here(pid):
                    self._move_process(pid, self._of(pid, ranks))
            if self.moved == before or self.refused:
                return

    def _ranks(self) -> Mapping[int, int]:
        """Returns the rank of each process that says of itself which one it is; the others are found by their parents.

        A service says so of its own processes alone: who is not in its control group is not looked at.
        """
        if len(self._move.ranks) < 2:
            return {}
        return {report.pid: report.local_rank for report in read_rank_reports(self._move.unit)}

    def _of(self, pid: int, ranks: Mapping[int, int]) -> Move:
        if len(self._move.ranks) < 2:
            return self._move.ranks[0]
        for _ in range(_MOST_PARENTS):
            if 0 <= ranks.get(pid, -1) < len(self._move.ranks):
                return self._move.ranks[ranks[pid]]
            try:
                # The name before it may hold anything; see proc_pid_stat(5).
                pid = int(self._proc.read(f"{pid}/stat").rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                break
            if pid <= 1:
                break
        return self._move.others

    def _is_here(self, pid: int) -> bool:
        """Says whether a process is in the control group, or below it; see cgroups(7) on /proc/PID/cgroup."""
        group = self._move.control_group.encode()
        try:
            lines = self._proc.read(f"{pid}/cgroup").splitlines()
        except OSError:
            return False
        # systemd's hierarchy is 0::PATH, or N:name=systemd:PATH with cgroup v1.
        paths = (path for _, name, path in (line.split(b":", 2) for line in lines) if name in (b"", b"name=systemd"))
        return any(path == group or path.startswith(group + b"/") for path in paths)

    def _move_process(self, pid: int, move: Move) -> None:
        try:
            for tid in self._proc.numbers(f"{pid}/task"):
                self._move_thread(tid, move)
        except (FileNotFoundError, ProcessLookupError):
            return

    def _move_thread(self, tid: int, move: Move) -> None:
        try:
            now = CpuSet(os.sched_getaffinity(tid))
            if now in move.known and now != move.to:
                os.sched_setaffinity(tid, move.to)
                self.moved += 1
        except ProcessLookupError:
            return
        except OSError as error:
            self.refused = self.refused or error
