"""Threads of real processes are moved, also those that are started meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torchpar.contract.cpulist import CpuSet
from torchpar.host import affinity
from torchpar.host.affinity import Move, UnitMove, move_unit
from torchpar.host.proc import ProcReader

HERE = CpuSet(os.sched_getaffinity(0))
ONE = CpuSet([HERE.first()])
pytestmark = [pytest.mark.subprocess, pytest.mark.skipif(len(HERE) < 2, reason="needs two CPUs")]

# A process with three threads, one of which has chosen its CPUs.
JOB = f"""
import os, sys, threading, time
def sit(cpus):
    os.sched_setaffinity(0, cpus)
    ready.wait()
    time.sleep(1000)
ready = threading.Barrier(3)
for cpus in ({set(HERE)}, {{{max(HERE)}}}):
    threading.Thread(target=sit, args=(cpus,), daemon=True).start()
ready.wait()
print("ready", flush=True)
sys.stdin.read()
"""


def in_group(job: int) -> Callable[..., bytes]:
    """What /proc says, but for the control group of this process."""
    read = affinity.ProcReader.read

    def read_with_group(reader: ProcReader, name: str, *arguments: int) -> bytes:
        return b"0::/group/below\n" if name == f"{job}/cgroup" else read(reader, name, *arguments)

    return read_with_group


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Its process, in what looks like the control group /group."""
    with subprocess.Popen([sys.executable, "-c", JOB], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        (tmp_path / "cgroup.procs").write_text(f"{process.pid}\n")
        monkeypatch.setattr(affinity, "find_group", lambda group: str(tmp_path))
        monkeypatch.setattr(affinity.ProcReader, "read", in_group(process.pid))
        yield process.pid
        process.kill()


def masks(pid: int) -> list[str]:
    return sorted(str(CpuSet(os.sched_getaffinity(int(tid)))) for tid in os.listdir(f"/proc/{pid}/task"))


def test_all_threads_are_moved_and_moved_back_but_one_that_the_job_has_bound(job: int) -> None:
    move = Move({HERE, ONE}, ONE)
    own = str(CpuSet([max(HERE)]))
    assert move_unit(UnitMove("a.service", "/group", [move], move)) == 2
    assert masks(job) == sorted([str(ONE), str(ONE), own])
    assert move_unit(UnitMove("a.service", "/group", [move], move)) == 0
    back = Move({HERE, ONE}, HERE)
    assert move_unit(UnitMove("a.service", "/group", [back], back)) == 2
    assert masks(job) == sorted([str(HERE), str(HERE), own])


def test_what_was_lent_is_left_by_a_thread_that_the_job_has_bound_too(job: int) -> None:
    """A loader worker has CPUs of its own beside those of its rank."""
    lent = CpuSet([max(HERE)])
    move = Move({HERE}, HERE - lent, gone=lent)
    assert move_unit(UnitMove("a.service", "/group", [move], move)) == 3
    assert masks(job) == [str(HERE - lent)] * 3


def test_each_rank_has_its_own(job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that says of itself that it is a rank; one that does not is moved as the launcher."""
    known = {HERE}
    ranks = [Move(known, CpuSet([max(HERE)])), Move(known, ONE)]
    report = type("Report", (), {"pid": job, "local_rank": 1})
    monkeypatch.setattr(affinity, "read_rank_reports", lambda unit: [report])
    move_unit(UnitMove("a.service", "/group", ranks, Move(known, HERE)))
    assert masks(job).count(str(ONE)) == 2


def test_processes_of_a_rank_are_known_by_their_parents(job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {HERE}
    report = type("Report", (), {"pid": os.getpid(), "local_rank": 0})
    monkeypatch.setattr(affinity, "read_rank_reports", lambda unit: [report])
    move_unit(UnitMove("a.service", "/group", [Move(known, ONE), Move(known, HERE)], Move(known, HERE)))
    assert masks(job).count(str(ONE)) == 2


def test_who_is_not_in_the_control_group_is_never_moved(job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a job says of itself: here that this process is one of its ranks, and its parent another."""
    pids = (os.getpid(), os.getppid())
    reports = [type("Report", (), {"pid": pid, "local_rank": rank}) for rank, pid in enumerate(pids)]
    monkeypatch.setattr(affinity, "read_rank_reports", lambda unit: reports)
    parent = os.sched_getaffinity(os.getppid())
    move_unit(UnitMove("a.service", "/group", [Move({HERE}, ONE), Move({HERE}, ONE)], Move({HERE}, ONE)))
    assert masks(job).count(str(ONE)) == 2
    assert CpuSet(os.sched_getaffinity(0)) == HERE and os.sched_getaffinity(os.getppid()) == parent


def test_a_process_that_has_the_number_of_one_that_has_ended_is_never_moved(
    job: int, tmp_path: Path
) -> None:
    """As this one, which is in the list but no longer in the control group."""
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n{job}\n")
    move = Move({HERE}, ONE)
    assert move_unit(UnitMove("a.service", "/group", [move], move)) == 2
    assert CpuSet(os.sched_getaffinity(0)) == HERE


def test_what_has_ended_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.procs").write_text("4194303\n")
    monkeypatch.setattr(affinity, "find_group", lambda group: str(tmp_path))
    move = Move({HERE}, ONE)
    assert move_unit(UnitMove("a.service", "/group", [move], move)) == 0


def test_the_control_group_gets_the_cpus_first_and_keeps_those_of_loader_workers(job: int, tmp_path: Path) -> None:
    """These are CPU 900 here, which nobody was given."""
    group = tmp_path / "cpuset.cpus"
    group.write_text(f"{HERE},900\n")
    (tmp_path / "cpuset.cpus.effective").write_text(f"{HERE}\n")
    move = Move({HERE, ONE}, ONE)
    assert move_unit(UnitMove("a.service", "/group", [move], move)) == 2
    assert group.read_text() == f"{ONE},900"
    back = Move({HERE, ONE}, HERE)
    assert move_unit(UnitMove("a.service", "/group", [back], back)) == 2
    assert group.read_text() == f"{HERE},900"
    assert masks(job).count(str(HERE)) == 2


def test_what_the_control_group_may_have_is_written_alone_where_it_is_said(job: int, tmp_path: Path) -> None:
    group = tmp_path / "cpuset.cpus"
    group.write_text("900\n")
    nothing = Move((), HERE)
    assert move_unit(UnitMove("a.service", "/group", [nothing], nothing, HERE)) == 0
    assert group.read_text() == str(HERE)


def test_a_thread_that_lost_its_cpus_with_the_control_group_has_them_again(
    job: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel 6.1 gives all threads those of the group; here when its file is written."""
    (tmp_path / "cpuset.cpus").write_text("900\n")
    (tmp_path / "cpuset.cpus.effective").write_text(f"{HERE}\n")
    before = masks(job)
    write = CpuSet.__str__

    def forget(cpus: CpuSet) -> str:
        for tid in map(int, os.listdir(f"/proc/{job}/task")):
            os.sched_setaffinity(tid, HERE)
        return write(cpus)

    monkeypatch.setattr(CpuSet, "__str__", forget)
    nothing = Move((), HERE)
    move_unit(UnitMove("a.service", "/group", [nothing], nothing, HERE))
    monkeypatch.undo()
    assert masks(job) == before
