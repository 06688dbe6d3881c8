"""Where a service may write: torchpar's own user in its folders, a login wherever that login may."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.conf.values import simple_path
from torchpar.contract.errors import ConfigError
from torchpar.host.access import ask_below
from torchpar.plan.access import make_questions, make_warnings
from torchpar.plan.plan import ServicePlan, make_plan
from torchpar.plan.sandbox import caches
from torchpar.units.drop_ins import make_units

TRAIN = "[Train a]\nScript=/a.py\n"
INFER = "[Infer a]\nModel=/m.pt\n"
LOGIN = ("ProtectSystem=full", "ProtectHome=no", "PrivateTmp=no", "RestrictSUIDSGID=no", "UMask=0022")


def planned(text: str) -> tuple[ServicePlan, list[str]]:
    """The plan of the conf's only service, and the lines of its drop-in."""
    facts = make_host()
    plan = make_plan(parse_config([ConfFile("/etc/torchpar.conf", text)], facts), facts)
    (service,) = plan.services
    return service, make_units(plan).files[f"{service.unit}.d/20-torchpar.conf"].splitlines()


def written(service: ServicePlan) -> tuple[str, str]:
    """What `torchpar explain` says of where it writes."""
    (reason,) = (reason for reason in service.reasons if reason.key == "ReadWritePaths")
    return reason.value, reason.why


def test_a_path_is_as_systemd_writes_it() -> None:
    """Else what systemd holds would not be what was planned, and apply would refuse it."""
    lines = planned(f"{TRAIN}WorkingDirectory=/data//a/./\nReadWritePaths=/x/ -//y/./z\n")[1]
    assert "ReadWritePaths=-/data/a /x -/y/z" in lines and "WorkingDirectory=/data//a/./" in lines


def test_torchpars_own_user_has_its_folders_and_the_strict_sandbox() -> None:
    """It has no home, so its caches and HOME are where it may write. What is relaxed for a login is not rendered."""
    for text in (TRAIN, f"{TRAIN}User=torchpar\n"):
        service, lines = planned(text)
        assert service.environment["HOME"] == service.environment["XDG_CACHE_HOME"] == "/var/cache/torchpar/train/a"
        assert service.environment["TRITON_CACHE_DIR"] == "/var/cache/torchpar/train/a/triton"
        assert not {*LOGIN, "RemoveIPC=no", "KeyringMode=shared"} & {*lines}
        assert not any(line.startswith("ReadWritePaths") for line in lines)
        value, why = written(service)
        assert value == "/var/lib/torchpar/train/a /var/cache/torchpar/train/a"
        assert '"Read-only file system"' in why and "User= or ReadWritePaths=" in why


def test_what_torchpars_own_user_works_in_and_what_the_conf_names_is_writable() -> None:
    """The folder of its own WorkingDirectory= may be missing, which systemd then says; one that is named may not."""
    service, lines = planned(f"{TRAIN}WorkingDirectory=/data/a b\nReadWritePaths=/runs -/mnt/x\nReadWritePaths=/more\n")
    assert 'ReadWritePaths="-/data/a b" /runs -/mnt/x /more' in lines
    assert written(service)[0].endswith("/train/a '/data/a b' /runs /mnt/x /more")


@pytest.mark.parametrize(
    "folder", ["/", "/.", "//", "/etc", "/usr/local/job", "/boot/.", "/proc/1", "/lib/job", "//lib64", "/bin", "/sbin"]
)
def test_a_folder_of_the_system_is_not_writable_because_a_service_starts_in_it(folder: str) -> None:
    """WorkingDirectory=/ means nowhere in particular. ReadWritePaths= of the same folder is a wish."""
    assert not any(line.startswith("ReadWritePaths") for line in planned(f"{TRAIN}WorkingDirectory={folder}\n")[1])
    assert f"ReadWritePaths={simple_path(folder)}" in planned(f"{TRAIN}ReadWritePaths={folder}\n")[1]


def test_a_training_job_of_another_user_is_as_a_login_of_that_user() -> None:
    """HOME is that user's, by systemd; no cache is moved; nobody else's shared memory is removed."""
    service, lines = planned(f"{TRAIN}User=ml\nWorkingDirectory=/home/ml/a\n")
    assert {*LOGIN, "RemoveIPC=no", "KeyringMode=shared"} <= {*lines}
    assert not any(name in service.environment for name in ("HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR"))
    assert not any(line.startswith("ReadWritePaths") for line in lines)
    assert written(service) == (
        "wherever ml may",
        "as at a login; but /usr, /boot, /efi, /etc are read-only",
    )
    assert "ReadWritePaths=/usr/local/runs" in planned(f"{TRAIN}User=ml\nReadWritePaths=/usr/local/runs\n")[1]


@pytest.mark.parametrize("user", ["root", "0"])
def test_a_training_job_of_root_may_write_what_others_own(user: str) -> None:
    """Without these capabilities root is stopped by the modes of other users' folders."""
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER" in planned(f"{TRAIN}User={user}\n")[1]
    assert "CapabilityBoundingSet" not in planned(f"{TRAIN}User=ml\n")[1]


def test_an_inference_service_of_another_user_stays_confined_with_that_users_home() -> None:
    """It answers the network. Its home is read-only, so the caches are elsewhere; shared memory stays all the same."""
    service, lines = planned(f"{INFER}User=ml\nReadWritePaths=/srv/answers\n")
    assert "HOME" not in service.environment
    assert service.environment["XDG_CACHE_HOME"] == "/var/cache/torchpar/infer/a"
    assert {"RemoveIPC=no", "ReadWritePaths=/srv/answers"} <= {*lines} and not {*LOGIN} & {*lines}
    assert "an inference service, also of ml," in written(service)[1] and "User=" not in written(service)[1]
    service, lines = planned(INFER)
    assert service.environment["HOME"] == "/var/cache/torchpar/infer/a" and "RemoveIPC=no" not in lines


@pytest.mark.parametrize("text", [TRAIN, INFER])
def test_a_service_without_user_has_its_caches_from_the_template_unit_too(text: str) -> None:
    """A generation of before an upgrade may not say them, and stays in force where the new one is refused.

    With User= none of the template's variables is left but one, which the drop-in says again.
    """
    service, lines = planned(text)
    assert "Environment=" not in lines
    template = Path(__file__).parents[3] / "systemd" / f"torchpar-{service.service.kind.value}@.service"
    said = [line for line in template.read_text().splitlines() if line.startswith("Environment=")]
    own = caches(service.service)
    expected = [f"Environment={name}={value[:-1]}%i" for name, value in own.items() if value.endswith("/a")]
    expected += [f"Environment={name}={value.replace('/a/', '/%i/')}" for name, value in own.items() if "/a/" in value]
    assert sorted(said) == sorted([*expected, "Environment=PYTHONUNBUFFERED=1"]) and len(own) == 4
    lines = planned(f"{text}User=ml\n")[1]
    first = lines.index("Environment=")
    assert lines[first + 1] == "Environment=PYTHONUNBUFFERED=1"
    assert not any(line.startswith("Environment=") for line in lines[:first])


def test_what_the_conf_says_itself_wins_and_is_told() -> None:
    """Environment= wins over the planned HOME, Service.KEY= comes last in the drop-in."""
    service, lines = planned(f"{TRAIN}Environment=HOME=/srv/h\nService.ProtectSystem=no\nService.ReadWritePaths=/d\n")
    assert service.environment["HOME"] == "/srv/h"
    assert lines.index("ReadWritePaths=/d") > 0 and lines[-2:] == ["ProtectSystem=no", "ReadWritePaths=/d"]
    value, why = written(service)
    assert value.endswith(" /d") and why.endswith("; Service.ProtectSystem=no changes that")


@pytest.mark.parametrize(
    "line",
    [
        "Script=/tmp/b.py",
        "Script=//tmp/./b.py",
        "WorkingDirectory=/var/tmp",
        "Python=/var//tmp/venv/bin/python3",
        "ReadWritePaths=/tmp/runs",
        "ReadWritePaths=/x -/tmp/runs",
        "Service.ReadWritePaths=/x -/tmp/runs",
    ],
)
def test_what_the_conf_names_below_tmp_is_there(line: str) -> None:
    """In a /tmp of its own nothing of it would be, and what is written there would go with the service."""
    service, lines = planned(f"{TRAIN}{line}\n")
    assert "PrivateTmp=no" in lines and "and in /tmp;" in written(service)[1]
    service, lines = planned(f"{TRAIN}ReadWritePaths=/tmpfiles -/var/tmpfiles -/x/tmp\n")
    assert "PrivateTmp=no" not in lines and "a /tmp of its own" in written(service)[1]


@pytest.mark.parametrize("value", ["data", "/a ../b", "/a/../b", "+/a", "- /a", "--/a"])
def test_a_place_to_write_is_an_absolute_path(value: str) -> None:
    """A mistake is an error with its line."""
    with pytest.raises(ConfigError, match=r"^/etc/torchpar.conf:3: \[Train a\] ReadWritePaths="):
        planned(f"{TRAIN}ReadWritePaths={value}\n")


def test_a_place_to_write_that_is_not_there_is_told_with_its_line(tmp_path: Path) -> None:
    """By either key; one that may be missing is not."""
    (tmp_path / "runs").mkdir()
    text = f"{TRAIN}ReadWritePaths=/runs /rums -/mnt/x\nService.ReadWritePaths=/runs /nowhere\n"
    config = parse_config([ConfFile("c", text)], make_host())
    told = [line for line in make_warnings(config, ask_below(tmp_path, make_questions(config))) if "ReadWrite" in line]
    why = "no such file or folder on this host; the service fails until it is there, or - stands before it"
    assert told == [
        f"c:3: [Train a] ReadWritePaths=/rums: {why}",
        f"c:4: [Train a] Service.ReadWritePaths=/nowhere: {why}",
    ]
