"""When a start that has failed lacked something that may come late, and what the job then waits for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import StoreError, SystemdError
from torchpar.generations.retry import LACKING, find_missing, is_dependency, is_lacking, main, mount_points, retry_named
from torchpar.host import systemd
from torchpar.plan.plan import make_plan, plan_json
from torchpar.units.drop_ins import make_units


def state(active: str = "failed", result: str = "exit-code", status: int = 78, **others: Any) -> dict[str, Any]:
    """The D-Bus properties of a unit."""
    return {"ActiveState": active, "Result": result, "ExecMainStatus": status, "Requires": [], **others}


@pytest.mark.parametrize("status", LACKING)
def test_a_start_that_found_a_file_missing_may_be_tried_again(status: int) -> None:
    """The runtime and the server say 78, systemd itself the others."""
    assert is_lacking(state(status=status)) and not is_dependency(state(status=status))


@pytest.mark.parametrize(
    "other",
    [state(status=1), state(status=217), state(result="signal"), state("active", "success", 0), state("activating")],
)
def test_any_other_failure_is_none_of_its_business(other: dict[str, Any]) -> None:
    """A script that fails is Restart='s; a service that runs, or is about to, is well."""
    assert not is_lacking(other)


@pytest.mark.parametrize("told", [{}, {"MONITOR_SERVICE_RESULT": "exit-code", "MONITOR_EXIT_STATUS": "1"}])
def test_what_cannot_lack_a_file_is_not_even_looked_at(told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With systemd 257 each failure of a script comes here; with neither variable it is a restart by hand."""
    for name in ("MONITOR_SERVICE_RESULT", "MONITOR_EXIT_STATUS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(systemd, "seconds_since_boot", lambda: pytest.fail("it looks"))
    retry_named("torchpar-train@a.service")


@pytest.mark.parametrize(
    "error",
    [SystemdError("systemctl says:\nConnection refused"), StoreError("the plan is damaged"), OSError("journal")],
)
def test_what_keeps_it_from_looking_is_told_in_a_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs at boot, where systemd, the store and the journal may each not be there."""

    def fail() -> float:
        raise error

    monkeypatch.setattr(sys, "argv", ["retry", "torchpar-train@a.service"])
    monkeypatch.setenv("MONITOR_SERVICE_RESULT", "success")
    monkeypatch.setattr(systemd, "seconds_since_boot", fail)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == f"torchpar: {str(error)}".replace("\n", " ")


def test_a_mount_that_failed_has_not_even_let_the_service_start() -> None:
    """systemd says so by OnFailure= alone: the service itself is as it was."""
    assert is_dependency(state("inactive", "success", 0)) and is_lacking(state("inactive", "success", 0))


def test_its_unit_may_start_as_often_as_a_service_fails() -> None:
    """systemd 257 starts it at each failure; by the limit of five in ten seconds it would itself fail, for nothing."""
    unit = (Path(__file__).parents[3] / "systemd" / "torchpar-retry@.service").read_text().splitlines()
    assert "StartLimitIntervalSec=0" in unit[: unit.index("[Service]")]


def test_what_is_missing_is_found_by_its_path(tmp_path: Path) -> None:
    """A link into a mount that is not there is missing, and so is what is below a file."""
    (tmp_path / "here").touch()
    (tmp_path / "link").symlink_to(tmp_path / "mount" / "train.py")
    files = [str(tmp_path / name) for name in ("here", "link", "here/below", "nowhere")]
    assert find_missing(files, state()) == tuple(files[1:])


def test_mount_points_have_their_blanks_again() -> None:
    """The kernel writes them as octal numbers."""
    text = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 21 0:40 /x /srv/a\\040b\\134 rw shared:1 - nfs4 nas:/x rw\n"
    assert list(mount_points(text)) == ["/", "/srv/a b\\"]


def test_a_service_waits_for_the_mounts_of_all_its_paths_and_the_plan_says_what_it_needs() -> None:
    """A path that may be missing is not waited for. Only one that starts at boot is tried again, so that the failure of
    one that is started by hand is told without more ado.
    """
    facts = make_host()
    text = "[Train a]\nScript=/nas/a.py\nPython=/nas/venv/bin/python3\nReadWritePaths=/runs -/maybe\nEnabled=yes\n"
    text += "[Infer b]\nModel=/nas/m.pt\nHandler=/nas/h.py\nTLSCertificate=/nas/c\nTLSKey=/nas/k\nWorkingDirectory=/w\n"
    plan = make_plan(parse_config([ConfFile("c", text)], facts), facts)
    units = make_units(plan).files
    train = units["torchpar-train@a.service.d/20-torchpar.conf"]
    infer = units["torchpar-infer@b.service.d/20-torchpar.conf"]
    assert "RequiresMountsFor=/nas/venv/bin/python3 /nas/a.py /runs\n" in train
    assert "RequiresMountsFor=/w /nas/m.pt /nas/h.py /nas/c /nas/k\n" in infer
    again = "OnFailure=torchpar-retry@%N.service\n"
    assert again in train and again not in infer
    needed = {service["name"]: service["needed_files"] for service in plan_json(plan)["services"]}
    assert needed["a"] == ["/nas/venv/bin/python3", "/nas/a.py", "/runs"]
    assert needed["b"] == ["/usr/bin/python3", "/w", "/nas/m.pt", "/nas/h.py", "/nas/c", "/nas/k"]
