"""Moves the threads of a unit that runs to other CPUs: sched_setaffinity(2) of each thread of each of its processes.

Where there is a cpuset controller the unit's control group gets them first: no thread can have a CPU that the group has
not, and none comes to those that it has no more. That is written to the group and not set as AllowedCPUs=: systemd
keeps what `systemctl set-property` sets as a drop-in that outlives the run, wins over the next plan, and has no way
back (257 leaves the live group as it is when the drop-in has gone). What is written goes with the group. systemd writes
its own AllowedCPUs= there again when it reads its units anew (252) or another service of the slice starts (both), so
whoever moves a unit comes again then.

A thread that is started meanwhile has the CPUs of the one that starts it, so this goes round until all are where they
belong. A thread for which the job itself has chosen CPUs keeps them, but for those that were lent and are not any more:
kernel 6.1 forgets them when the group changes, so they are noted before.
"""

from __future__ import annotations

import contextlib
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
# Of a list of CPUs; that of a host with 8,192 of them has less.
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class Move:
    """The CPUs that threads are to have (`to`), and the sets of those that are moved, which torchpar gave (`known`).

    `planned` are those of a rank that no other rank has: whoever is bound to some of them belongs to it. `gone` are
    those that no thread of the service may have any more.
    """

    known: Collection[CpuSet]
    to: CpuSet
    planned: CpuSet = CpuSet()
    gone: CpuSet = CpuSet()


@dataclass(frozen=True)
class UnitMove:
    """The move of a unit: of the processes of each rank, by local_rank, and of those that belong to none.

    `allowed` are the CPUs of its control group; None: those that it has now, without what is known, and where its
    threads are to be. It keeps those of other services (`lent`), as the next loan is made of what it allows.
    """

    unit: str
    control_group: str
    ranks: Sequence[Move]
    others: Move
    allowed: CpuSet | None = None
    lent: CpuSet = CpuSet()

    def group_cpus(self, now: CpuSet) -> CpuSet:
        """Returns the CPUs that its control group is to have, which has these now."""
        moves = (*self.ranks, self.others)
        known = CpuSet.union(cpus for move in moves for cpus in move.known)
        return self.allowed or (now - (known - self.lent)) | CpuSet.union(move.to for move in moves)


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
        # What threads had before their control group changed, and what a thread has then by that alone.
        self._before: dict[int, CpuSet] = {}
        self._inherited: CpuSet | None = None

    def go_round(self) -> None:
        self._change_group()
        for _ in range(_ROUNDS if self._group else 0):
            before = self.moved
            ranks = self._ranks()
            for pid in list(group_pids(self._group or "", self._proc)):
                # The number may be another process's by now: the list was made up to seconds ago.
                if self._is_here(pid):
                    self._move_process(pid, self._of(pid, ranks))
            if self.moved == before or self.refused:
                return

    def _change_group(self) -> None:
        """Writes the CPUs of the control group, where these are others; it is left alone where that is not possible."""
        path = f"{self._group}/cpuset.cpus"
        try:
            with open(path, encoding="ascii") as file:
                now = CpuSet.parse(file.read(_MOST_BYTES).strip())
        except (OSError, ValueError):
            return
        wanted = self._move.group_cpus(now)
        # An empty one has what the slice has.
        if not now or wanted == now:
            return
        for pid in list(group_pids(self._group or "", self._proc)):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for tid in self._proc.numbers(f"{pid}/task"):
                    with contextlib.suppress(OSError):
                        self._before[tid] = CpuSet(os.sched_getaffinity(tid))
        with contextlib.suppress(OSError):
            with open(path, "w", encoding="ascii") as file:
                file.write(str(wanted))
            with open(f"{path}.effective", encoding="ascii") as file:
                self._inherited = CpuSet.parse(file.read(_MOST_BYTES).strip())

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
            before = self._before.pop(tid, None)
            had = before or now
            if move is self._move.others:
                # A second process on the CPUs of a rank, which is no child of the first.
                move = next((rank for rank in self._move.ranks if had <= rank.planned), move)
            if had in move.known or (before is None and now == self._inherited):
                to = move.to
            else:
                to = (had if self._inherited and not had.isdisjoint(self._inherited) else now) - move.gone or move.to
            if now != to:
                os.sched_setaffinity(tid, to)
                self.moved += 1
        except ProcessLookupError:
            return
        except OSError as error:
            self.refused = self.refused or error
