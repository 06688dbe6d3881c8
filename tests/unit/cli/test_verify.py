"""`torchpar verify`: what a person sees of services that run as planned, and of those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.verify.fake_host import INFER, TRAIN, FakeHost, make_fake_host
from torchpar.cli import verify as command
from torchpar.cli.main import run
from torchpar.host import systemd

OVERRIDE = f"/etc/systemd/system/{TRAIN}.d/override.conf"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """One on which a service runs as planned, at 80 columns."""
    made = make_fake_host(tmp_path)
    made.apply()
    made.start(TRAIN)
    made.systemd.properties[TRAIN] |= {"ActiveState": "active", "InvocationID": []}
    made.systemd.properties[INFER] = {"MainPID": 0}
    monkeypatch.setattr(command, "Store", lambda: made.store)
    monkeypatch.setattr(command, "read_running_unit", made.read_running_unit)
    monkeypatch.setattr(command, "observe_undeclared", lambda *arguments: ([], []))
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    monkeypatch.setattr(systemd, "unit_properties", made.systemd.unit_properties)
    monkeypatch.setattr(systemd, "read_unit_file", made.unit_files.get)
    monkeypatch.setenv("COLUMNS", "80")
    return made


def test_a_drop_in_of_others_that_wins_is_named_with_its_file_and_the_cure(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where what runs is as planned still, which is another matter: it may have started before."""
    assert run(["verify"]) == 0 and OVERRIDE not in capsys.readouterr().out
    host.systemd.properties[TRAIN]["DropInPaths"] = [f"/run/systemd/generator/{TRAIN}.d/20-torchpar.conf", OVERRIDE]
    host.unit_files[OVERRIDE] = "[Service]\nCPUAffinity=\nCPUAffinity=0\nNice=5\n"
    assert run(["verify", "a"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines()), shown
    said = " ".join(shown.split())
    assert f"! it has CPUAffinity from {OVERRIDE}, which wins over the conf: write it into the conf and remove" in said
    assert run(["verify", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["verdict"] == "ok" and OVERRIDE in row["overrides"][0]
