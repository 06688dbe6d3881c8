"""What doctor looks at: a host below a root, and this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchpar.cli.readings import read_host
from torchpar.doctor.check import all_checks, examine
from torchpar.doctor.finding import Severity


def test_of_another_host_the_conf_and_files_are_read_and_nothing_that_runs(tmp_path: Path) -> None:
    for path, text in (
        ("sys/devices/system/cpu/online", "0-1"),
        ("etc/torchpar.conf", "[Train a]\nScript=/a.py\n"),
        ("proc/sys/vm/overcommit_memory", "2"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    host = read_host(tmp_path)
    assert [service.title for service in host.services] == ["train@a"] and not host.live
    status = {result.check.name: result.status for result in examine(host, all_checks())}
    assert status["kern.overcommit"] is Severity.WARN
    assert status["unit.failed"] is status["obs.torchpard"] is Severity.NOT_APPLICABLE


def test_an_example_of_the_package_that_nobody_has_started_is_nobodys_fault(tmp_path: Path) -> None:
    for path, text in (
        ("sys/devices/system/cpu/online", "0-1"),
        ("usr/lib/torchpar.conf.d/00-vendor.conf", "[Train demo]\nScript=/demo.py\n"),
        ("etc/torchpar.conf", "[Train a]\nScript=/a.py\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert [service.title for service in read_host(tmp_path).services] == ["train@a"]


def test_a_conf_with_mistakes_is_a_finding_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/torchpar.conf").write_text("[Trian a]\n")
    host = read_host(tmp_path)
    assert host.config is None and "/etc/torchpar.conf:1" in host.conf_problems[0]


@pytest.mark.subprocess
def test_this_host_can_be_looked_at_whatever_it_is() -> None:
    assert examine(read_host(), all_checks())
