"""The counters of a unit's control group."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchpar.facts.counters import UnitCounters
from torchpar.host import unit_counters
from torchpar.host.sysfs import Tree


def test_what_systemd_and_the_kernel_count_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {
        "a": {"ActiveState": "active", "NRestarts": "2", "ControlGroup": "/t"},
        "b": {"ActiveState": "failed", "NRestarts": "9", "ControlGroup": ""},
        "c": {"ActiveState": "active", "NRestarts": "", "ControlGroup": "/none"},
    }
    monkeypatch.setattr(unit_counters, "read_units", lambda units, names: shown)
    for name, text in (
        ("cpu.stat", "usage_usec 1500000\nnr_periods 9\nnr_throttled 4\n"),
        ("memory.current", "4096\n"),
        ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=7\n"),
    ):
        (tmp_path / "sys/fs/cgroup/t").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup/t" / name).write_text(text)
    assert unit_counters.read_counters(["a", "b", "c"], Tree(tmp_path)) == {
        "a": UnitCounters("active", 2, 1.5, 4, 4096, {"memory": 2.5}),
        "b": UnitCounters("failed", 9),
        "c": UnitCounters("active", 0),
    }
