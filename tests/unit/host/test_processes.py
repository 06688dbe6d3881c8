"""The processes of a unit, where a job does with its /proc whatever it can: long, slow, of any bytes."""

from __future__ import annotations

import os
import re
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.unit.records import make_record
from tests.unit.verify.test_compare import PLAN
from torchpar.contract.cpulist import CpuSet
from torchpar.facts.running import RunningUnit
from torchpar.host import processes
from torchpar.host.proc import LIMIT, ProcReader, TooLateError, TooLongError
from torchpar.host.processes import read_running_unit
from torchpar.host.threads import ThreadReader
from torchpar.verify.compare import Verdict, verify
from torchpar.verify.service import item_json

UNIT = "torchpar-train@a.service"
STATUS = b"Name:\tState: R\nState:\tR (running)\nUid:\t0\t0\t0\t0\nCpus_allowed_list:\t0-1\n"
NUMA = b"55d0 prefer:0 file=/usr/bin/python3 mapped=3 N0=3\n7f00 default anon=1 N0=1 N1=2\n"

# What may be in the name of a file or a process: line ends of any kind, escape sequences, no UTF-8, a line of its own.
NAMES = (
    b"/srv/x\x0b1 bind:9 N7=5", b"/srv/x\x851 bind:9", b"/srv/\xe2\x80\xa81 bind:9", b"/srv/\x1b]0;x\x07\x9b2J",
    b"/srv/\xff\xfe\xed\xa0\x80", b"/srv/\x0c1\x1c1\x1d1\x1e1 bind:9", b"/srv/\r1 bind:9",
)  # fmt: skip


def process(proc: Path, pid: int = 10, **files: bytes) -> Path:
    """The folder of a process of one thread, with these files instead of those of an honest one."""
    folder = proc / str(pid)
    (folder / f"task/{pid}").mkdir(parents=True)
    (folder / f"task/{pid}/status").write_bytes(files.pop("status", STATUS))
    honest = {"maps": b"55d0-55d1 r--p 00000000 00:00 1 /usr/lib/libjemalloc.so.2\n", "numa_maps": NUMA}
    for name, data in {**honest, "environ": b"OMP_NUM_THREADS=2\0HOME=/\0", **files}.items():
        (folder / name).write_bytes(data)
    return folder


def look(proc: Path, seconds: float = 60.0) -> RunningUnit:
    """What is read of process 10, as verify asks for it."""
    variables = PLAN["environment"].keys()
    return read_running_unit(UNIT, 10, "", variables=variables, seconds=seconds, proc=str(proc))


def test_an_honest_process_is_read_as_it_is(tmp_path: Path) -> None:
    """Threads, policies, pages, malloc, and of the variables those that are asked for."""
    process(tmp_path)
    (found,) = look(tmp_path).processes
    assert (found.threads, found.allocator) == ({10: CpuSet([0, 1])}, "jemalloc")
    assert (found.policies, found.pages) == ({"prefer:0": 1, "default": 1}, {0: 4, 1: 2})
    assert found.environment == {"OMP_NUM_THREADS": "2"}
    assert found.runnable_threads == 1


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_a_file_is_taken_for_what_the_kernel_says(tmp_path: Path, name: bytes) -> None:
    """The kernel escapes line breaks and spaces in a path and lets any other byte through."""
    # As seq_file_path() does: "\n\t= ".
    escaped = re.sub(rb"[\n\t= ]", lambda found: b"\\%03o" % found[0][0], name)
    process(
        tmp_path,
        numa_maps=NUMA + b"7f01 default file=" + escaped + b" mapped=1 N0=1\n",
        maps=b"55d0-55d1 r--p 00000000 00:00 1 " + name.replace(b"\n", b"\\012") + b"/libjemalloc\n",
        environ=b"OMP_NUM_THREADS=" + name + b"\0",
    )
    unit = look(tmp_path)
    (found,) = unit.processes
    assert (found.policies, found.pages) == ({"prefer:0": 1, "default": 2}, {0: 5, 1: 2})
    assert found.allocator == "glibc"
    for item in verify(make_record(PLAN), unit):
        assert all(text.isprintable() for text in item_json(item).values())


def test_a_process_that_does_not_answer_holds_nobody(tmp_path: Path) -> None:
    """Its memory is locked: what was read before counts, the rest is unknown, and that is said once."""
    folder = process(tmp_path)
    (folder / "numa_maps").unlink()
    os.mkfifo(folder / "numa_maps")
    began = time.monotonic()
    unit = look(tmp_path, seconds=0.2)
    assert time.monotonic() - began < 300 and "have not answered within 0.2 s" in unit.unread
    items = verify(make_record(PLAN), unit)
    assert Verdict.OK not in {item.verdict for item in items if item.what not in ("cpuset", "CPU quota")}
    assert {item.notice for item in items if item.notice} == {f"cannot be seen as a whole: {unit.unread}"}
    os.close(os.open(folder / "numa_maps", os.O_RDWR))


@pytest.mark.parametrize("name", ["maps", "numa_maps", "environ"])
def test_what_has_no_end_is_unknown(tmp_path: Path, name: str) -> None:
    """So many bytes are read of a file, and then no item that rests on it is well."""
    folder = process(tmp_path)
    with (folder / name).open("r+b") as file:
        file.truncate(LIMIT + 1)
    unit = look(tmp_path)
    assert "too long" in unit.unread
    item = {"maps": "allocator", "numa_maps": "memory policy", "environ": "environment"}[name]
    assert {found.what: found.verdict for found in verify(make_record(PLAN), unit)}[item] is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "files",
    [
        {"environ": bytes(LIMIT)},
        {"environ": b"".join(b"a%d=\0" % number for number in range(500_000))},
        {"environ": b"OMP_NUM_THREADS=\xf0\x9f\x98\x80\0" * (LIMIT // 21)},
        {"maps": b"55d0-55d1 r--p 00000000 00:00 1 /lib/libtorch.so\n" * (LIMIT // 49)},
        {"numa_maps": b"55d0 default anon=1 N0=1\n" * (LIMIT // 25)},
        {"environ": bytes(LIMIT), "maps": b"x\n" * (LIMIT // 2), "numa_maps": b"\n" * LIMIT},
    ],
    ids=["zeros", "names", "one name", "libraries", "policies", "all at once"],
)
def test_what_is_as_long_as_it_may_be_is_never_held_as_a_whole(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Whatever its bytes are: several services are read at a time, and torchpard has 128 MiB."""
    files["environ"] = files.get("environ", b"")[: LIMIT - 18] + b"\0OMP_NUM_THREADS=2"
    process(tmp_path, **files)
    tracemalloc.start()
    try:
        unit = look(tmp_path, seconds=600)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (unit.unread, unit.processes[0].environment) == ("", {"OMP_NUM_THREADS": "2"})
    assert peak < 2**20


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_what_comes_in_pieces_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Wherever the kernel cuts it; a line without an end is too long."""
    monkeypatch.setattr("torchpar.host.proc._PIECE", size)
    folder = process(
        tmp_path, environ=b"XOMP_NUM_THREADS=9\0OMP_NUM_THREADS=\0OMP_NUM_THREADS=2=\0OMP_NUM_THREADS\0HOME=/"
    )
    (found,) = look(tmp_path).processes
    assert (found.policies, found.pages) == ({"prefer:0": 1, "default": 1}, {0: 4, 1: 2})
    assert (found.environment, found.allocator) == ({"OMP_NUM_THREADS": "2="}, "jemalloc")
    (folder / "maps").write_bytes(b"x" * 31)
    monkeypatch.setattr("torchpar.host.proc._LONGEST", 30)
    assert look(tmp_path).processes[0].allocator is None


def test_threads_with_the_same_cpus_share_them_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many sets as a job can make cost no more than some do; more threads than can be kept are unknown."""
    folder = process(tmp_path) / "task"
    for tid in range(20, 60):
        (folder / str(tid)).mkdir()
        (folder / f"{tid}/status").write_bytes(b"Name:\tR\nState:\tS (sleeping)\nCpus_allowed_list:\t0-255\n")
    reader = ThreadReader(ProcReader(60, str(tmp_path)))
    threads = reader.read(10)
    assert reader.runnable == 1
    assert len(threads) == 41 and len({id(cpus) for cpus in threads.values()}) == 2
    for tid in range(20, 60):
        (folder / f"{tid}/status").write_bytes(b"Cpus_allowed_list:\t%d-8191\n" % tid)
    with pytest.raises(TooLongError):
        ThreadReader(ProcReader(60, str(tmp_path))).read(10)
    unit = look(tmp_path)
    assert unit.processes[0].threads is None and "its threads" in unit.unread
    assert {item.what: item.verdict for item in verify(make_record(PLAN), unit)}["CPUs"] is Verdict.UNKNOWN
    for tid in range(20, 60):
        (folder / f"{tid}/status").write_bytes(STATUS)
    assert look(tmp_path).unread == ""
    monkeypatch.setattr("torchpar.host.threads.MOST_THREADS", 40)
    assert look(tmp_path).processes[0].threads is None


def test_more_processes_than_can_be_read_in_time_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process is read first, so what rests on it alone is known; a process elsewhere is drift all the same."""
    group = tmp_path / "group"
    group.mkdir()
    (group / "cgroup.procs").write_text("11 12 10")
    process(tmp_path, 10)
    process(tmp_path, 11, status=STATUS.replace(b"0-1", b"5"))
    process(tmp_path, 12)
    monkeypatch.setattr(processes, "_HIERARCHIES", (str(tmp_path),))
    read: list[int] = []
    take = ThreadReader.read

    def until_the_time_is_over(self: ThreadReader, pid: int) -> dict[int, CpuSet]:
        if len(read) == most:
            raise TooLateError
        read.append(pid)
        return take(self, pid)

    monkeypatch.setattr(ThreadReader, "read", until_the_time_is_over)
    most = 0
    for cpus in (Verdict.UNKNOWN, Verdict.DRIFT):
        read.clear()
        most += 1
        unit = read_running_unit(UNIT, 10, "/group", variables=("OMP_NUM_THREADS",), proc=str(tmp_path))
        found = {item.what: item.verdict for item in verify(make_record(PLAN), unit)}
        assert read[0] == 10 and found["CPUs"] is cpus
        assert found["memory policy"] is found["threads"] is Verdict.UNKNOWN
        assert found["allocator"] is found["environment"] is Verdict.OK


def test_what_is_wrong_with_thousands_of_processes_is_a_line(tmp_path: Path) -> None:
    """The first of them, and how many more there are."""
    process(tmp_path, status=STATUS.replace(b"0-1", b"5"))
    unit = look(tmp_path)
    many = RunningUnit(UNIT, 10, unit.processes * 10_000, True)
    (item,) = (item for item in verify(make_record(PLAN), many) if item.what == "CPUs")
    assert len(item.actual) < 1000 and item.actual.endswith("; 9990 more")


def test_a_process_that_ends_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    """Whatever of it was there a moment ago."""
    process(tmp_path, 11)
    seen = look(tmp_path)
    assert seen == RunningUnit(UNIT, 10, (), seen.has_numa, online_cpus=seen.online_cpus)
    (tmp_path / "10/task/10").mkdir(parents=True)
    assert look(tmp_path).processes == ()
