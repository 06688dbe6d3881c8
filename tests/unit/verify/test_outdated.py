"""What runs with older settings than are in force."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.unit.verify.fake_host import INFER, TRAIN, FakeHost, make_fake_host
from torchpar.contract.cpulist import CpuSet
from torchpar.verify.outdated import find_outdated


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """A host whose two services run as planned, and started at the second 100."""
    host = make_fake_host(tmp_path)
    host.apply()
    for unit in (TRAIN, INFER):
        host.start(unit)
        host.systemd.properties[unit]["ActiveEnterTimestamp"] = 100_000_000
    return host


def find(host: FakeHost, since: float, **more: Any) -> tuple[str, ...]:
    return find_outdated(host.systemd, host.read_running_unit, host.compile().services(), since, **more)


def test_what_runs_as_planned_is_not_outdated_whenever_it_started(host: FakeHost) -> None:
    """A rollback to what it started with, for one; also where it is among what was changed meanwhile."""
    assert find(host, 50.0) == find(host, 150.0) == find(host, 150.0, anew={TRAIN}) == ()


def test_what_started_with_other_settings_is(host: FakeHost) -> None:
    """By its processes, if it started before; what started since has what was in force then."""
    (process,) = host.processes[TRAIN]
    host.processes[TRAIN] = (dataclasses.replace(process, threads={process.pid: CpuSet([0])}),)
    assert find(host, 150.0) == (TRAIN,)
    assert find(host, 50.0) == (), "it has drifted, which no restart is asked for"
    assert find(host, 50.0, anew={INFER}) == (INFER,)
    del host.systemd.runs[TRAIN]
    assert find(host, 150.0) == ()
