"""What systemd holds against what was planned."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.hosts import make_host
from tests.unit.records import make_record
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.generations.readback import compare_socket, compare_unit
from torchpar.plan.plan import make_plan, plan_json
from torchpar.plan.record import ServiceRecord, parse_plan

OURS = "/run/systemd/generator/torchpar-train@a.service.d/20-torchpar.conf"
OVERRIDE = "/etc/systemd/system/torchpar-train@a.service.d/override.conf"


LINES = "Script=/a.py\nEnabled=yes\nReadWritePaths=/data\nService.ReadWritePaths=/by/hand\n"


def make_plan_json() -> dict[str, Any]:
    """The plan of [Train a] on a host of four cores and one node."""
    host = make_host()
    config = parse_config([ConfFile("/c", f"[Host]\nReserveCores=0\n[Train a]\n{LINES}")], host)
    return plan_json(make_plan(config, host))


def make_service() -> ServiceRecord:
    """As a generation keeps it, since that is what a unit is compared with."""
    return parse_plan(json.dumps(make_plan_json()))[0]


def held(**changes: Any) -> dict[str, Any]:
    """The properties of a unit that systemd holds as planned, but for these."""
    service = make_service()
    properties = {
        "DropInPaths": [OURS],
        "CPUAffinity": [0b1111],
        "AllowedCPUs": [0b1111],
        "AllowedMemoryNodes": [1],
        "NUMAMask": [1],
        "NUMAPolicy": 1,
        "User": "torchpar",
        "ReadWritePaths": ["/data", "/by/hand"],
        "Environment": [f"{name}={value}" for name, value in service.environment.items()] + ["LANG=C"],
        "ExecStart": [["/usr/bin/python3", service.command, False, 0, 0, 0, 0, 0, 0, 0]],
    }
    return {**properties, **changes}


def test_a_unit_as_planned_has_no_difference() -> None:
    """More variables than planned are the static unit's."""
    assert compare_unit(make_service(), held()) == compare_unit(make_service(), held(Environment=held()["Environment"]))
    read = compare_unit(make_service(), held())
    assert read.wrong == () and read.notes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CPUAffinity": [0b11]}, "CPUAffinity is 0-1, planned 0-3"),
        ({"AllowedCPUs": []}, "AllowedCPUs is empty, planned 0-3"),
        ({"CPUAffinity": [0b1111, 0b1]}, "CPUAffinity is 0-3,8, planned 0-3"),
        ({"NUMAPolicy": 2}, "NUMAPolicy is bind, planned preferred"),
        ({"Environment": []}, "Environment OMP_NUM_THREADS is empty, planned 4"),
        ({"User": "ml"}, "User is ml, planned torchpar"),
        ({"ReadWritePaths": ["/by/hand"]}, "ReadWritePaths is /by/hand, planned /data"),
        ({"ExecStart": []}, "ExecStart is empty, planned /usr/bin/python3"),
        ({"DropInPaths": []}, "systemd has not loaded its drop-in"),
    ],
)
def test_a_difference_is_wrong_and_named(changes: dict[str, Any], message: str) -> None:
    """systemd did not get what was meant, and the message says what it has."""
    read = compare_unit(make_service(), held(**changes))
    assert any(message in line for line in read.wrong) and not read.notes


def test_a_plan_of_an_older_version_says_nothing_of_user_and_paths() -> None:
    """So neither is compared: what systemd holds of them is the older version's."""
    (whole,) = make_plan_json()["services"]
    older = [{k: v for k, v in whole.items() if k not in ("user", "read_write_paths")}]
    (service,) = parse_plan(json.dumps({"services": older}))
    assert not compare_unit(service, held(User="x", ReadWritePaths=["/x"])).wrong


def test_a_difference_behind_an_override_is_the_administrators() -> None:
    """What sorts after our drop-in wins, and is only noted."""
    read = compare_unit(make_service(), held(CPUAffinity=[1], DropInPaths=[OURS, OVERRIDE]))
    assert not read.wrong
    assert read.notes == (f"torchpar-train@a.service: CPUAffinity is 0, planned 0-3 (an override: {OVERRIDE})",)


def test_a_socket_listens_where_planned() -> None:
    """Listen is a(ss) on D-Bus: kind and address."""
    plan = make_record({"unit": "torchpar-infer@a.service", "listen": ["127.0.0.1:8000", "[::1]:8000"]})
    drop_in = "/run/systemd/generator/torchpar-infer@a.socket.d/20-torchpar.conf"
    listen = [["Stream", "127.0.0.1:8000"], ["Stream", "[::1]:8000"]]
    assert not compare_socket(plan, {"DropInPaths": [drop_in], "Listen": listen}).wrong
    assert compare_socket(plan, {"DropInPaths": [drop_in], "Listen": listen[:1]}).wrong == (
        "torchpar-infer@a.socket: ListenStream is 127.0.0.1:8000, planned 127.0.0.1:8000 [::1]:8000",
    )
    assert "has not loaded its drop-in" in compare_socket(plan, {"Listen": listen}).wrong[0]


def test_a_unit_that_is_masked_is_the_administrators() -> None:
    """systemd reads nothing of it, and whatever else is applied is in force all the same."""
    read = compare_unit(make_service(), held(LoadState="masked", DropInPaths=[]))
    assert read.wrong == () and "systemctl unmask torchpar-train@a.service" in read.notes[0]
