"""Which CPUs and accelerators `torchpar run` takes for used: what systemd tells, and what this user's own jobs say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchpar.adhoc import running
from torchpar.adhoc.running import read_ad_hoc_jobs
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.job import JobSettings, RankSettings, job_environment
from torchpar.host import systemd

SETTINGS = JobSettings("torchpar-run-x-1.service", 1, None, (RankSettings(0, "3", "0", 1, 0, ("0000:17:00.0",)),))
((NAME, VALUE),) = job_environment(SETTINGS).items()
TOLD = f"{NAME}={VALUE}".encode()
COMMAND = b"/usr/bin/python3\0/usr/lib/torchpar/launch.py\0x.py\0"
NOTHING: tuple[CpuSet, frozenset[str]] = (CpuSet(), frozenset())


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a process on CPU 3, of this user and without a unit, with some files otherwise; nothing else runs."""
    monkeypatch.setattr(systemd, "is_running", lambda: False)

    def make(*, users: str = "{0} {0} {0} {0}", mode: int = 0o755, **files: bytes) -> Path:
        folder = tmp_path / "4000000"
        (folder / "task/1").mkdir(parents=True)
        uids = "\t".join(users.format(os.geteuid()).split())
        honest = {"cmdline": COMMAND, "environ": b"A=1\0" + TOLD + b"\0", "cgroup": b"0::/user.slice\n", "exe": b""}
        honest["status"] = honest["task/1/status"] = f"Name:\tx\nUid:\t{uids}\nCpus_allowed_list:\t3\n".encode()
        for name, data in {**honest, **files}.items():
            (folder / name).write_bytes(data)
        (folder / "exe").chmod(mode)
        return folder

    return make


def test_a_job_of_this_user_without_a_unit_is_seen(job: Callable[..., Path]) -> None:
    """By its launcher: its CPUs, and the accelerators that torchpar told it."""
    folder = job()
    assert read_ad_hoc_jobs(str(folder.parent)) == (CpuSet([3]), frozenset({"0000:17:00.0"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": "4711 {0} {0} {0}"},  # a setuid program that another user runs
        {"users": "4711 4711 4711 4711"},  # a process that nobody may look into: its folder is root's
        {"mode": 0o4755},  # sudo, which has made itself root, with the arguments and variables of whoever called it
        {"mode": 0o2755},
        {"cmdline": b"/usr/lib/torchpar/launch.py\0"},
        {"cmdline": b"x\0" * 100_000},
        {"cmdline": b""},
        {"cgroup": b"0::/torchpar.slice/torchpar-train@x.service\n"},
    ],
)
def test_nobody_takes_cpus_by_a_name(job: Callable[..., Path], wrong: dict[str, Any]) -> None:
    """A process of somebody else, or one that systemd tells of, does not count, whatever it calls itself."""
    assert read_ad_hoc_jobs(str(job(**wrong).parent)) == NOTHING


def test_a_job_with_a_unit_is_told_once_and_by_systemd_where_there_is_one(
    job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that is not booted its own processes are all that is known."""
    folder = job(cgroup=b"0::/torchpar.slice/torchpar-run-x-1.service\n")
    assert read_ad_hoc_jobs(str(folder.parent))[0] == CpuSet([3])
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    monkeypatch.setattr(systemd, "ad_hoc_jobs", lambda: ())
    assert read_ad_hoc_jobs(str(folder.parent)) == NOTHING


def test_a_process_of_another_user_is_not_even_read(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its arguments nor its variables: both are its own to write, and may hold whoever reads them."""
    folder = job()
    for name in ("cmdline", "environ"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert read_ad_hoc_jobs(str(folder.parent)) == NOTHING


@pytest.mark.parametrize(
    "told", [b"{", b"[" * 100_000, b"\xff\0", b'{"ranks": [{"gpus": ["\xed\xa0\x80"]}]}', b"9" * 200_000]
)
def test_a_variable_that_torchpar_has_not_written_names_no_accelerator(job: Callable[..., Path], told: bytes) -> None:
    """The CPUs that the process may use are the kernel's word, and count."""
    folder = job(environ=NAME.encode() + b"=" + told + b"\0")
    assert read_ad_hoc_jobs(str(folder.parent)) == (CpuSet([3]), frozenset())


def test_a_process_that_does_not_answer_holds_nobody(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found until then counts."""
    monkeypatch.setattr(running, "_SECONDS", 0.2)
    folder = job()
    (folder / "environ").unlink()
    os.mkfifo(folder / "environ")
    assert read_ad_hoc_jobs(str(folder.parent)) == NOTHING
    os.close(os.open(folder / "environ", os.O_RDWR))


def test_what_systemd_tells_of_a_unit_counts_for_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root alone can make one."""
    held = {"AllowedCPUs": [0b110], "CPUAffinity": [0b10], "Environment": ["A=1", f"{NAME}={VALUE}"]}
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    monkeypatch.setattr(systemd, "ad_hoc_jobs", lambda: ("torchpar-run-x-1.service", "torchpar-run-y-2.service"))
    monkeypatch.setattr(systemd, "unit_properties", lambda unit: held if "-x-" in unit else {"CPUAffinity": [0b10000]})
    assert read_ad_hoc_jobs(str(tmp_path)) == (CpuSet([1, 2, 4]), frozenset({"0000:17:00.0"}))
