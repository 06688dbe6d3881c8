"""What systemd answers, captured from Debian 12 and 13: a training service of two CPUs and one node that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.records import make_record
from torchpar.generations.readback import compare_unit
from torchpar.host import systemd
from torchpar.host.systemd import object_path, parse_properties, restarting_units
from torchpar.plan.record import ServiceRecord

ANSWERS = Path(__file__).parents[1] / "busctl"

UNIT = "torchpar-train@a.service"


@pytest.fixture(params=[252, 257])
def properties(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `busctl --json=short call ... GetAll` printed."""
    return parse_properties((ANSWERS / f"{request.param}.json").read_text(encoding="utf-8"))


def make_memory(policy: str, nodes: str, allowed_nodes: str) -> dict[str, Any]:
    """The memory policy in a plan."""
    return {"memory_policy": {"policy": policy, "nodes": nodes, "allowed_nodes": allowed_nodes}}


def make_plan(**changes: Any) -> ServiceRecord:
    """The service in the plan that was in force, but for these."""
    planned = {
        "unit": UNIT,
        "cpus": "0-1",
        **make_memory("bind", "0", "0"),
        "environment": {"OMP_NUM_THREADS": "2", "LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"},
        "command": ["/usr/bin/python3", "/usr/lib/torchpar/run.py", "--", "/srv/job.py"],
    }
    return make_record({**planned, **changes})


def test_every_property_has_its_plain_value(properties: dict[str, Any]) -> None:
    """Numbers, text and lists, without D-Bus types around them."""
    assert properties["Id"] == UNIT and properties["MainPID"] > 1 and properties["SourcePath"] == "/etc/torchpar.conf"
    assert properties["ControlGroup"] == f"/torchpar.slice/{UNIT}"
    assert properties["DropInPaths"] == [f"/run/systemd/generator/{UNIT}.d/20-torchpar.conf"]
    assert isinstance(properties["CPUUsageNSec"], int)


def test_what_both_releases_answer_is_what_was_planned(properties: dict[str, Any]) -> None:
    """CPU and node sets as bytes, the policy as a number, the command as the second member of a structure."""
    read = compare_unit(make_plan(), properties)
    assert (read.wrong, read.notes) == ((), ())


@pytest.mark.parametrize(
    ("planned", "difference"),
    [
        ({"cpus": "0"}, "CPUAffinity is 0-1, planned 0"),
        ({"cpus": "0,9"}, "AllowedCPUs is 0-1, planned 0,9"),
        (make_memory("local", "", "0"), "NUMAMask is 0, planned empty"),
        (make_memory("local", "", "0"), "NUMAPolicy is bind, planned local"),
        (make_memory("bind", "0", "1"), "AllowedMemoryNodes is 0, planned 1"),
        ({"environment": {"OMP_NUM_THREADS": "1"}}, "Environment OMP_NUM_THREADS is 2, planned 1"),
        ({"command": ["/usr/bin/python3", "x.py"]}, "planned /usr/bin/python3 x.py"),
        ({"unit": "torchpar-train@b.service"}, "systemd has not loaded its drop-in"),
    ],
)
def test_what_differs_is_found(properties: dict[str, Any], planned: dict[str, Any], difference: str) -> None:
    """In every property that a drop-in of ours sets."""
    assert any(difference in line for line in compare_unit(make_plan(**planned), properties).wrong)


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        (UNIT, "torchpar_2dtrain_40a_2eservice"),
        ("torchpar-infer@0_é.service", "torchpar_2dinfer_400_5f_c3_a9_2eservice"),
        ("0.service", "_30_2eservice"),
    ],
)
def test_a_unit_is_asked_for_by_its_object_path(unit: str, path: str) -> None:
    """As systemd-escape does not do it: sd_bus_path_encode(3)."""
    assert object_path(unit) == f"/org/freedesktop/systemd1/unit/{path}"


def test_units_that_wait_for_their_next_start_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"a": "running", "b": "auto-restart", "c": "failed", "d": "auto-restart-queued"}
    listed = [{"unit": name, "load": "loaded", "active": "activating", "sub": sub} for name, sub in states.items()]
    monkeypatch.setattr(systemd, "_systemctl", lambda *argv: json.dumps(listed))
    assert restarting_units() == ("b", "d")
