"""What runs against what was planned, one verdict an item."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.records import make_record
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.reports import RankReport
from torchpar.facts.running import Process, RunningUnit
from torchpar.host.processes import read_running_unit
from torchpar.verify.compare import Verdict, summary, verify
from torchpar.verify.service import item_json

PLAN: dict[str, Any] = {
    "unit": "torchpar-train@a.service",
    "kind": "train",
    "cpus": "0-1",
    "memory_policy": {"policy": "preferred", "nodes": "0", "allowed_nodes": "0-1"},
    "allocator": "jemalloc",
    "ranks": [{"local_rank": 0, "cpus": "0-1", "numa_nodes": "0", "threads": 2}],
    "environment": {"OMP_NUM_THREADS": "2"},
}

PROCESS = Process(
    pid=10,
    threads={10: CpuSet([0, 1]), 11: CpuSet([0, 1])},
    policies={"prefer:0": 90, "default": 3},
    pages={0: 99, 1: 1},
    allocator="jemalloc",
    environment={"OMP_NUM_THREADS": "2", "HOME": "/"},
)

RANK = RankReport(pid=10, local_rank=0, torch="2.13.0", threads=2, interop_threads=1, cpus="0-1", allocator="jemalloc")

RUNNING = RunningUnit(
    unit="torchpar-train@a.service",
    main_pid=10,
    processes=(PROCESS,),
    has_numa=True,
    cpuset=CpuSet([0, 1]),
    throttled=0,
    periods=0,
    ranks=(RANK,),
)


JOB = {"interop_threads": 1, "ranks": [{"cpus": "0-1", "threads": 2}]}


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (json.dumps({**JOB, "interop_threads": 2}), "InteropThreads 2 instead of 1"),
        (
            json.dumps({**JOB, "ranks": [{"cpus": "0", "threads": 1}]}),
            "CPUs 0 instead of 0-1; Threads 1 instead of 2",
        ),
        ('{"interop_threads": 1,"ranks": [{"cpus": "0-1", "threads": 2}]}', "TORCHPAR_JOB is written otherwise"),
        ("x" * 2**20, "TORCHPAR_JOB=xxx"),
        ("\x1b[2J" + "[" * 100_000, r"TORCHPAR_JOB=\x1b[2J[["),
        ("[]", "TORCHPAR_JOB=[] instead of {"),
        (None, 'TORCHPAR_JOB=(not set) instead of {"interop_threads": 1, '),
        (json.dumps({f"\x1b{number}": "y" * 90 for number in range(900)}), "more settings"),
    ],
)
def test_settings_of_another_start_are_told_by_their_names(job: str | None, said: str) -> None:
    """And not by the beginning of a long variable, which is the same; whatever a job has made of it."""
    plan = make_record({**PLAN, "environment": {"TORCHPAR_JOB": json.dumps(JOB)}})
    environment = {"PATH": "/usr/bin"} if job is None else {"TORCHPAR_JOB": job}
    process = dataclasses.replace(PROCESS, environment=environment)
    items = {item.what: item for item in verify(plan, dataclasses.replace(RUNNING, processes=(process,)))}
    found = items["environment"]
    assert found.verdict is Verdict.DRIFT and said in found.actual
    assert found.actual.isprintable() and len(found.actual) < 2500


def verdicts(process: dict[str, Any] | None = None, **unit: Any) -> dict[str, Verdict]:
    """The verdict of each item for a unit that differs in these fields."""
    changed = dataclasses.replace(PROCESS, **(process or {}))
    running = dataclasses.replace(RUNNING, processes=(changed,), **unit)
    return {item.what: item.verdict for item in verify(make_record(PLAN), running)}


def test_a_unit_that_runs_as_planned_is_ok_in_every_item() -> None:
    """Seven items, all ok."""
    assert set(verdicts().values()) == {Verdict.OK} and len(verdicts()) == 7
    assert summary(verify(make_record(PLAN), RUNNING)) is Verdict.OK


@pytest.mark.parametrize("cpus", [CpuSet([1]), CpuSet([0, 1, 2]), CpuSet([5])])
def test_one_thread_elsewhere_is_drift(cpus: CpuSet) -> None:
    """On fewer CPUs, on more, or on others: all cost speed, the service's own or another's."""
    process = dataclasses.replace(PROCESS, threads={11: cpus})
    found = verify(make_record(PLAN), dataclasses.replace(RUNNING, processes=(process,)))
    assert found[0].verdict is Verdict.DRIFT and f"1 of 1 threads of process 10 on {cpus}" in found[0].actual


@pytest.mark.parametrize(
    ("pid", "cpus", "verdict"),
    [
        (10, "0", Verdict.OK),
        (10, "1", Verdict.DRIFT),
        # Kernel 6.1 gives all processes what their control group has, when a CPU goes or comes.
        (10, "0-1", Verdict.DRIFT),
        (11, "0-1", Verdict.OK),
        (11, "1", Verdict.OK),
    ],
)
def test_a_rank_has_its_own_part_of_the_services_cpus(pid: int, cpus: str, verdict: Verdict) -> None:
    """The first rank says that it is process 10; of another process of the service nobody knows which one it is."""
    plan = {**PLAN, "ranks": [{**PLAN["ranks"][0], "cpus": "0"}, {**PLAN["ranks"][0], "local_rank": 1, "cpus": "1"}]}
    process = dataclasses.replace(PROCESS, pid=pid, threads={pid: CpuSet.parse(cpus)})
    assert verify(make_record(plan), dataclasses.replace(RUNNING, processes=(process,)))[0].verdict is verdict


@pytest.mark.parametrize("cpus", ["0", "0-1"])
def test_cpus_that_are_offline_are_drift_that_no_restart_mends(cpus: str) -> None:
    """Whatever a kernel shows of a thread then: what it may use, or what it had been given."""
    process = dataclasses.replace(PROCESS, threads={10: CpuSet.parse(cpus)})
    gone = {"online_cpus": CpuSet([0, 2]), "cpuset": CpuSet([0])}
    items = verify(make_record(PLAN), dataclasses.replace(RUNNING, processes=(process,), **gone))
    assert (items[0].verdict, items[0].actual) == (Verdict.DRIFT, "CPUs 1 are offline")
    assert items[0].notice == "has CPUs 0-1 planned, of which 1 are offline"
    assert (items[1].what, items[1].verdict) == ("cpuset", Verdict.OK)


def test_a_rank_without_the_allocator_is_drift() -> None:
    """torchrun has it and the rank that it started has not; loader workers and compilers are not asked."""
    others = (dataclasses.replace(PROCESS, pid=11, allocator="glibc"), dataclasses.replace(PROCESS, pid=12))
    running = dataclasses.replace(RUNNING, processes=(PROCESS, *others))
    for pid, verdict in ((10, Verdict.OK), (11, Verdict.DRIFT), (12, Verdict.OK)):
        item = verify(make_record(PLAN), dataclasses.replace(running, ranks=(dataclasses.replace(RANK, pid=pid),)))[3]
        assert (item.what, item.verdict) == ("allocator", verdict)


@pytest.mark.parametrize(
    ("policy", "found", "verdict"),
    [
        ("bind", "bind:1", Verdict.OK),
        ("bind", "bind:0-1", Verdict.OK),  # the launcher's own
        ("bind", "bind:2", Verdict.DRIFT),
        ("bind", "prefer:1", Verdict.DRIFT),
        ("interleave", "interleave:0", Verdict.OK),
        ("preferred", "prefer:1", Verdict.OK),
    ],
)
def test_a_rank_has_the_nodes_of_the_policy_that_are_near_its_cpus(policy: str, found: str, verdict: Verdict) -> None:
    """Its memory is where it computes."""
    ranks = [{**PLAN["ranks"][0], "local_rank": rank, "numa_nodes": str(rank)} for rank in (0, 1)]
    nodes = "0" if policy == "preferred" else "0-1"
    plan = {**PLAN, "ranks": ranks, "memory_policy": {"policy": policy, "nodes": nodes, "allowed_nodes": "0-1"}}
    process = dataclasses.replace(PROCESS, policies={found: 9})
    items = {item.what: item for item in verify(make_record(plan), dataclasses.replace(RUNNING, processes=(process,)))}
    assert items["memory policy"].verdict is verdict


BUSY = {1: 60.0, 2: 55.0, 3: 4.0}  # two that compute, and one of gloo


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        (({1: 9.0}, BUSY, BUSY), 2),  # the first waits for both
        ((BUSY, BUSY), 2),  # the first is one of them
        (({}, {1: 9.0}, BUSY, BUSY, BUSY), 3),
        ((BUSY, {1: 60.0}, {1: 60.0}, {1: 60.0}), 0),  # loader workers
        (({1: 9.0}, {1: 60.0, 2: 20.0}, {1: 60.0, 2: 20.0}), 0),  # ranks with one thread, and those of gloo
        ((BUSY, {1: 8.0, 2: 8.0}), 0),  # a helper
        ((BUSY, {}), 0),  # one that has not loaded torch
        (({1: 4.0, 2: 4.0}, {1: 4.0, 2: 4.0}), 0),  # they have just begun
        ((), 0),
    ],
)
def test_ranks_that_a_script_starts_are_told_when_their_threads_are_more_than_the_cpus(
    seconds: tuple[dict[int, float], ...], count: int
) -> None:
    """By what has computed, not by what could."""
    processes = tuple(dataclasses.replace(PROCESS, pid=10 + n, cpu_seconds=s) for n, s in enumerate(seconds))
    running = dataclasses.replace(RUNNING, processes=processes or (PROCESS,))
    item = next(item for item in verify(make_record(PLAN), running) if item.what == "threads")
    assert item.verdict is (Verdict.DRIFT if count else Verdict.OK)
    assert item.notice == (
        f"has {count} processes that compute with {2 * count} threads on 2 CPUs: Threads=1 divides the CPUs among them;"
        f" so does Ranks={count} where they are ranks, which its script then need not start"
        if count
        else ""
    )
    # Room for all, ranks of the plan, and processes of a server.
    ranks = [{**PLAN["ranks"][0], "local_rank": n} for n in (0, 1)]
    for other in ({"cpus": "0-15"}, {"ranks": ranks}, {"kind": "infer", "unit": "torchpar-infer@a.service"}):
        found = verify(make_record({**PLAN, **other}), running)
        assert not any(item.notice for item in found)


@pytest.mark.subprocess
def test_the_cpu_time_of_a_process_with_torch_is_read_by_thread(tmp_path: Path) -> None:
    """It is known by the library that it has mapped."""
    library = tmp_path / "libtorch_cpu.so"
    library.write_bytes(bytes(4096))
    code = """
import mmap, sys, threading, time
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
threading.Thread(target=threading.Event().wait, daemon=True).start()
while time.process_time() < 0.1:
    pass
print(flush=True)
threading.Event().wait()
"""
    for arguments in ((), (str(library),)):
        command = [sys.executable, "-c", code, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            (found,) = read_running_unit("torchpar-train@a.service", process.pid, "").processes
            process.kill()
        assert len(found.cpu_seconds) == (2 if arguments else 0)
        assert not arguments or found.cpu_seconds[found.pid] >= 0.05


@pytest.mark.parametrize(
    ("process", "item"),
    [
        ({"policies": {"default": 90, "prefer:0": 3}}, "memory policy"),
        ({"policies": {"bind:0": 90}}, "memory policy"),
        ({"policies": {"prefer:1": 90}}, "memory policy"),
        ({"allocator": "glibc"}, "allocator"),
        ({"environment": {"OMP_NUM_THREADS": "1"}}, "environment"),
        ({"environment": {"HOME": "/"}}, "environment"),
    ],
)
def test_another_value_than_planned_is_drift(process: dict[str, Any], item: str) -> None:
    """In that item alone."""
    found = verdicts(process)
    assert found.pop(item) is Verdict.DRIFT
    assert set(found.values()) == {Verdict.OK}


def test_a_job_without_the_preload_that_killed_it_drifts_in_one_item_which_says_why() -> None:
    """Its environment is as planned but for that; what the process wrote there is not trusted."""
    planned = {**PLAN["environment"], "LD_PRELOAD": "/l.so", "TORCHPAR_PRELOAD": "/l.so"}
    plan = {**PLAN, "environment": planned}
    environment = {**PLAN["environment"], "TORCHPAR_PRELOAD": "/l.so"}
    notices = {"\x1b[1mSIGABRT after 2 s": "runs with glibc's malloc, since its last start with jemalloc", "": ""}
    for why, notice in notices.items():
        told = {**environment, "TORCHPAR_WITHOUT_PRELOAD": why} if why else environment
        process = dataclasses.replace(PROCESS, allocator="glibc", environment=told)
        running = dataclasses.replace(RUNNING, processes=(process,))
        items = {item.what: item for item in verify(make_record(plan), running)}
        assert (items["allocator"].verdict, items["allocator"].actual) == (Verdict.DRIFT, "glibc")
        assert items["allocator"].notice.startswith(notice) and bool(items["allocator"].notice) == bool(why)
        assert items["environment"].verdict is (Verdict.OK if why else Verdict.DRIFT)
        if why:
            assert "(\\x1b[1mSIGABRT after 2 s); Allocator=glibc in [Train a]" in items["allocator"].notice


@pytest.mark.parametrize("value", ["\udcff\ud800", "\x1b[2J\n", "x" * 100_000])
def test_what_a_process_makes_of_its_variables_is_a_line_of_text(value: str) -> None:
    """Else no command would take torchpard's answer, with all the other services in it."""
    environment = {"OMP_NUM_THREADS": value, "TORCHPAR_WITHOUT_PRELOAD": value}
    process = dataclasses.replace(PROCESS, allocator="glibc", environment=environment)
    running = dataclasses.replace(RUNNING, processes=(process,))
    for item in verify(make_record(PLAN), running):
        for text in item_json(item).values():
            assert text.isprintable() and len(text) < 1000, text


@pytest.mark.parametrize(
    ("process", "item"),
    [
        ({"threads": None}, "CPUs"),
        ({"policies": None}, "memory policy"),
        ({"allocator": None}, "allocator"),
        ({"environment": None}, "environment"),
    ],
)
def test_what_only_root_may_read_is_unknown_and_never_ok(process: dict[str, Any], item: str) -> None:
    """Not to know is not to be fine."""
    assert verdicts(process)[item] is Verdict.UNKNOWN


def test_a_process_that_has_overwritten_its_environment_is_unknown_and_no_drift() -> None:
    """setproctitle does that; the variables that the process was started with are in force all the same."""
    running = dataclasses.replace(RUNNING, processes=(dataclasses.replace(PROCESS, environment={}),))
    item = next(item for item in verify(make_record(PLAN), running) if item.what == "environment")
    assert item.verdict is Verdict.UNKNOWN
    assert "overwritten" in item.actual


@pytest.mark.subprocess
def test_an_overwritten_environment_is_read_as_no_variables() -> None:
    """Zeros, behind the end of a name that was too long for the command line alone."""
    code = """
import ctypes
with open("/proc/self/stat") as file:
    first, end = map(int, file.read().rpartition(")")[2].split()[47:49])
ctypes.memset(first, 0, end - first)
ctypes.memmove(first, b"epoch 3", 7)
print(flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline()
        unit = read_running_unit("torchpar-train@a.service", process.pid, "")
        process.stdin.close()
    assert [found.environment for found in unit.processes] == [{}]


@pytest.mark.parametrize(
    ("unit", "item", "verdict"),
    [
        ({"has_numa": False}, "memory policy", Verdict.NOT_APPLICABLE),
        ({"cpuset": None}, "cpuset", Verdict.NOT_APPLICABLE),
        ({"cpuset": CpuSet([0])}, "cpuset", Verdict.DRIFT),
        ({"throttled": None}, "CPU quota", Verdict.NOT_APPLICABLE),
        ({"throttled": 1, "periods": 100}, "CPU quota", Verdict.OK),
        ({"throttled": 50, "periods": 100}, "CPU quota", Verdict.DRIFT),
        ({"ranks": ()}, "threads", Verdict.NOT_APPLICABLE),
        ({"ranks": (dataclasses.replace(RANK, threads=1),)}, "threads", Verdict.DRIFT),
        ({"ranks": (dataclasses.replace(RANK, pid=99, threads=1),)}, "threads", Verdict.NOT_APPLICABLE),
        ({"main_pid": 11}, "allocator", Verdict.UNKNOWN),
    ],
)
def test_what_the_host_and_torch_say_decides(unit: dict[str, Any], item: str, verdict: Verdict) -> None:
    """A controller that is not there is no drift; what another process wrote counts for nothing."""
    assert verdicts(**unit)[item] is verdict
