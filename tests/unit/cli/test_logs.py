"""`torchpar logs`: which of the journal's entries it asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.verify.fake_host import INFER, TRAIN, make_fake_host
from torchpar.cli import logs
from torchpar.cli.main import run
from torchpar.contract.reports import RankReport
from torchpar.host import systemd

JOB = "torchpar-run-x-7.service"


class DoneError(Exception):
    """It has become another program."""


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What it executes, on a host with two services in force, an ad-hoc job that runs and one that has ended."""
    host = make_fake_host(tmp_path)
    host.apply()
    host.systemd.runs[JOB] = "now"
    found: list[str] = []

    def become(file: str, arguments: list[str]) -> None:
        found[:] = arguments
        raise DoneError

    monkeypatch.setattr(systemd, "is_running", lambda: True)
    monkeypatch.setattr(systemd, "running_services", host.systemd.running_services)
    monkeypatch.setattr(systemd, "ad_hoc_jobs", host.systemd.ad_hoc_jobs)
    monkeypatch.setattr(logs, "Store", lambda: host.store)
    ended = ("torchpar-run-old-3.service", "torchpar-train@gone.service")
    monkeypatch.setattr(logs, "has_entries", lambda unit: unit in ended)
    monkeypatch.setattr(os, "execvp", become)
    return found


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("a", [TRAIN]),
        ("train@a", [TRAIN]),
        (TRAIN, [TRAIN]),
        ("b", [INFER, INFER.replace(".service", ".socket")]),
        ("x-7", [JOB]),
        ("run-x-7", [JOB]),
        (JOB, [JOB]),
        ("run-old-3", ["torchpar-run-old-3.service"]),
        ("gone", ["torchpar-train@gone.service"]),
        ("torchpar-train@gone.service", ["torchpar-train@gone.service"]),
    ],
)
def test_each_name_of_a_service_leads_to_its_journal(argv: list[str], name: str, units: list[str]) -> None:
    """Also of what has ended and of what nobody declared; that of a socket belongs to its service."""
    with pytest.raises(DoneError):
        run(["logs", name])
    assert argv == ["journalctl", "--quiet", "--output=short", "--lines=100", *(f"--unit={unit}" for unit in units)]


def test_one_rank_alone_is_that_of_its_process(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the rank has told; one that is not there is named. The number alone would be that of others, too."""
    report = RankReport(pid=77, local_rank=1, torch="2", threads=1, interop_threads=1, cpus="0", allocator="glibc")
    monkeypatch.setattr(logs, "read_rank_reports", lambda unit: [report])
    with pytest.raises(DoneError):
        run(["logs", "a", "--rank", "1", "-f", "-n", "5"])
    process = ["--boot", f"_SYSTEMD_UNIT={TRAIN}", "_PID=77"]
    assert argv == ["journalctl", "--quiet", "--output=short", "--follow", "--lines=5", *process]
    assert run(["logs", "a", "--rank", "2"]) == 1


@pytest.mark.parametrize("name", ["aa", "run-y", "../x", "--user"])
def test_a_mistyped_name_is_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Nothing is executed; the nearest name is told."""
    assert run(["logs", name]) == 64 and argv == []
    assert name != "aa" or "did you mean train@a?" in capsys.readouterr().err
