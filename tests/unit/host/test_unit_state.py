"""What systemctl and journalctl show, read for many units at once."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

from torchpar.host import unit_state


def saying(monkeypatch: pytest.MonkeyPatch, stdout: str, *, status: int = 0, stderr: str = "") -> list[Sequence[str]]:
    asked: list[Sequence[str]] = []

    def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, status, stdout, stderr)

    monkeypatch.setattr(unit_state, "run", run)
    return asked


def test_one_call_reads_all_units_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = saying(
        monkeypatch, "Id=a.service\nActiveState=active\nResult=\n\nId=chronyd.service\nActiveState=inactive\n"
    )
    found = unit_state.read_units(["a.service", "chrony.service"], ["ActiveState", "Result"])
    assert found == {
        "a.service": {"Id": "a.service", "ActiveState": "active", "Result": ""},
        "chrony.service": {"Id": "chronyd.service", "ActiveState": "inactive"},
    }
    assert asked == [["systemctl", "show", "--property=Id,ActiveState,Result", "--", "a.service", "chrony.service"]]


def test_a_systemd_that_does_not_answer_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, "", status=1)
    assert unit_state.read_units(["a.service"], ["Id"]) == {}
    assert unit_state.read_units([], ["Id"]) == {}


def test_what_systemd_has_loaded_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = saying(monkeypatch, "Id=torchpar-train@a.service\nActiveState=failed\n\nId=torchpar-train@b.service\n")
    assert unit_state.read_loaded(["torchpar-train@*.service"], ["ActiveState"]) == {
        "torchpar-train@a.service": {"Id": "torchpar-train@a.service", "ActiveState": "failed"},
        "torchpar-train@b.service": {"Id": "torchpar-train@b.service"},
    }
    assert asked[0][-1] == "torchpar-train@*.service"
    saying(monkeypatch, "")
    assert unit_state.read_loaded(["x@*.service"], ["ActiveState"]) == {}


def test_the_kernels_log_is_unknown_to_who_may_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, "NVRM: Xid 1\nother\n")
    assert unit_state.read_kernel_log("NVRM: Xid") == ("NVRM: Xid 1",)
    saying(monkeypatch, "", stderr="Hint: You are currently not seeing messages from other users and the system.")
    assert unit_state.read_kernel_log("NVRM: Xid") is None
