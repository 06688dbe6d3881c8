"""Service.KEY=: what is passed on to a unit, and what the page, the table and systemd say of it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.hosts import make_host
from torchpar.adhoc.plan import conf_of
from torchpar.cli import run
from torchpar.conf.directives import SINCE
from torchpar.conf.parse import parse_config
from torchpar.conf.passed import GROUPS, OPENING, PASSED, expanded, judge, needed, opened
from torchpar.conf.services import Service
from torchpar.conf.syntax import ConfFile
from torchpar.contract.errors import ConfigError
from torchpar.generations.compile import compile_as_applied
from torchpar.generations.generation import Content
from torchpar.plan.access import make_questions
from torchpar.plan.inputs import Inputs
from torchpar.plan.opened import opened_paths
from torchpar.plan.ownership import add_questions
from torchpar.plan.questions import Answer, Found, Identity, Need, Question, Verdict

ROOT = Path(__file__).parents[3]
SHIPPED = [ROOT / "systemd" / f"torchpar-{kind}@.service" for kind in ("train", "infer")]


def service_of(lines: str) -> Service:
    """A training job with these further lines."""
    (service,) = parse_config([ConfFile("/c", f"[Train a]\nScript=/s.py\n{lines}\n")], make_host()).services
    return service


def test_each_directive_is_in_one_group_and_one_that_systemd_knows() -> None:
    """Of the two releases that the other table has."""
    names = [name for _, listed in GROUPS for name in listed.split()]
    assert len(names) == len(set(names)) and PASSED <= SINCE.keys()
    assert all(listed.split() == sorted(listed.split()) for _, listed in GROUPS)


@pytest.mark.parametrize(
    "pattern",
    [
        *["Exec(?!Paths)", "CPU", "NUMA", "Allowed", "Startup", "Delegate", "Kill", "FinalKill", "SendSIG", "Notify"],
        *["Type", "Slice", "User$", "Group$", "DynamicUser", "PAM", "Root(Hash|Verity|Image.)", "(Mount|Extension)"],
        *["State.*y$", "Cache.*y$", "Runtime.*y", "Configuration", "Environment$", "UnsetEnv", "Sockets", "PIDFile"],
        *["BPF", ".*FilterPath", "TTY", "Utmp", "Timeout(Stop|Abort|Sec)", "Watchdog(?!Sec)", "OOMPolicy", "FailureA"],
        *["StartLimitA", "Remain", "Guess", "BusName", "FileDesc", "SecureBits", "IPCN", "PrivatePIDs", "USB", "Perm"],
    ],
)
def test_what_torchpar_decides_or_runs_as_another_user_is_not_passed(pattern: str) -> None:
    """Nor what has systemd open, mount or give away things by names that torchpar cannot look at."""
    found = {name for name in SINCE if re.match(pattern, name)} - {"MountAPIVFS"}
    assert found and not found & PASSED
    for name in found:
        with pytest.raises(ConfigError, match=f"^/c:3: .Train a. Service.{name}=: .{{20,}}"):
            service_of(f"Service.{name}=yes")


@pytest.mark.subprocess
def test_the_page_lists_what_is_passed() -> None:
    """It is made from the table."""
    command = [sys.executable, "-B", ROOT / "debian/man/make_conf_page.py", ROOT / "debian/man/torchpar.conf.5.in"]
    page = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True)
    listed = page.stdout.partition(".SS Service.KEY\n")[2].partition(".SS ")[0].partition(".SH ")[0]
    for title, names in GROUPS:
        block = listed.partition(f"\n{title}\n")[2].partition("\n.TP\n")[0]
        assert set(re.findall(r"\b[A-Z][A-Za-z0-9]+\b", block)) >= set(names.split()), title
    assert not {name for name in re.findall(r"\b[A-Z][A-Za-z0-9]+\b", listed) if name in SINCE} - PASSED


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("EnvironmentFile=-/etc/%p/%i.env", ["/etc/torchpar-train/a.env"]),
        ("EnvironmentFile=/etc/100%%", ["/etc/100%"]),
        ("LoadCredential=a:/etc/x:y", ["/etc/x:y"]),
        ("LoadCredential=a", []),
        ("LoadCredentialEncrypted=a:b", []),
        ("SetCredential=a:/etc/x", []),
        ("StandardOutput=append:/var/log/%N", ["/var/log/torchpar-train@a"]),
        ("StandardError=truncate:/var/log/x", ["/var/log/x"]),
        ("StandardInput=file:/srv/in", ["/srv/in"]),
        ("StandardInput=data", []),
        ("OpenFile=/etc/x:name:read-only", ["/etc/x"]),
        ("BindPaths=-/a:/b:rbind /c", ["/a/", "/b/", "/c/"]),
        ("BindReadOnlyPaths=/a/", ["/a/"]),
        ("TemporaryFileSystem=/a:ro /b", ["/a/", "/b/"]),
        ("RootDirectory=/", ["/"]),
        ("RootImage=/srv/x.raw", ["/srv/x.raw"]),
        ("NetworkNamespacePath=/run/netns/a", ["/run/netns/a"]),
        ("ReadWritePaths=/home/ml", []),
        ("Nice=5", []),
    ],
)
def test_what_systemd_opens_as_root_is_known_by_its_path(line: str, paths: list[str]) -> None:
    """With the key and the value that name it; a / at the end allows a folder."""
    found = opened_paths(service_of(f"Service.{line}"))
    assert [named.path for named in found] == paths
    key, _, value = f"Service.{line}".partition("=")
    assert all((named.key, named.value) == (key, value) for named in found)


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("StandardOutput=append:/var/log/%N-%%-%i", "append:/var/log/torchpar-run-x-%-"),
        ("BindPaths=/a/%p:/b/%n", "/a/torchpar-run-x:/b/torchpar-run-x.service"),
        ("LoadCredential=%H:/etc/%N", "%H:/etc/torchpar-run-x"),
        ("SyslogIdentifier=%N", "%N"),
    ],
)
def test_a_transient_unit_is_given_the_paths_that_are_looked_at(line: str, given: str) -> None:
    """systemd replaces no specifiers in one."""
    name, _, value = line.partition("=")
    unit = "torchpar-run-x.service"
    assert expanded(name, value, unit) == given
    assert list(opened(name, given.replace("%", "%%"), unit)) == list(opened(name, value, unit))


@pytest.mark.parametrize("name", sorted(PASSED))
def test_the_directives_with_paths_that_systemd_opens_are_known(name: str) -> None:
    found = []
    for value in ("/x", "file:/x", "a:/x"):
        with contextlib.suppress(ValueError):
            found += opened(name, value, "")
    assert bool(found) == (name in OPENING)


@pytest.mark.parametrize(("version", "is_refused"), [(252, False), (253, True), (None, True)])
def test_nothing_is_asked_about_a_directive_that_is_left_out(version: int | None, is_refused: bool) -> None:
    """Neither whose the path is, nor whether it is there; of a systemd that is not known all are asked about."""
    text = "[Train a]\nScript=/s.py\nService.OpenFile=/home/ml/f\n"
    file, facts = ConfFile("/c", text), dataclasses.replace(make_host(), systemd_version=version)
    config = parse_config([file], facts)
    foreign = Answer(Verdict.FOREIGN, "/home/ml", 0o755, "ml", "ml")
    missing = Answer(Verdict.MISSING, "/home/ml/f")
    answers = {Question("/home/ml/f", Need.OWN_NO_PIPE): foreign, Question("/home/ml/f", Need.THERE): missing}
    inputs = Inputs(config, facts, (file,), {Identity(None): Found(answers=answers)}, {})
    assert bool(inputs.refusals()) == is_refused and len(inputs.unreachable()) == 2 * is_refused


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("EnvironmentFile=/etc/x", ["/etc/x"]),
        ("EnvironmentFile=-/etc/x", []),
        ("StandardOutput=append:/var/log/a/%i.log", ["/var/log/a"]),
        ("StandardInput=file:/srv/in", ["/srv/in"]),
        ("OpenFile=/etc/x:name:read-only", ["/etc/x"]),
        ("OpenFile=/etc/x:name:read-only,graceful", []),
        ("BindPaths=-/a:/b:rbind /c:/d /e", ["/c", "/e"]),
        ("TemporaryFileSystem=/a:ro", []),
        ("LoadCredential=a:/etc/x", ["/etc/x"]),
        ("LoadCredential=a", []),
        ("Nice=5", []),
    ],
)
def test_what_has_to_be_there_at_a_start_is_known(line: str, paths: list[str]) -> None:
    """Not what systemd makes, nor what the conf says may be missing."""
    name, _, value = line.partition("=")
    assert list(needed(name, value, "torchpar-train@a.service")) == paths


@pytest.mark.parametrize(
    "line",
    [
        "EnvironmentFile=/etc/*.env",
        "EnvironmentFile=/etc/%h",
        "EnvironmentFile=/etc/x%",
        "EnvironmentFile=etc/x",
        "LoadCredential=a:../x",
        "LoadCredential=tls-key:/etc/x",
        "StandardInput=tty",
        "StandardOutput=fd:x",
        "StandardOutput=socket",
        "StandardOutput=file:x",
        'BindPaths="/a b"',
        "BindPaths=/a\\x20b",
        "OpenFile=/a\\:b",
        "RootDirectory=relative",
        "LogsDirectory=journal",
        "LogsDirectory=torchpar",
        "LogsDirectory=torchpar/../journal",
        "LogsDirectory=torchpar/x journal",
        "LogsDirectory=torchpar/x:journal",
    ],
)
def test_what_cannot_be_looked_at_before_is_not_passed(line: str) -> None:
    """A pattern, a specifier of the running host, quotes; a folder of others that systemd would give away."""
    name, _, value = line.partition("=")
    assert judge(name, value)
    with pytest.raises(ConfigError, match=f"Service.{name}=: "):
        service_of(f"Service.{line}")


@pytest.mark.parametrize(
    "line",
    [
        "EnvironmentFile=/etc/x/*.env",
        "StandardOutput=tty",
        "LogsDirectory=mylogs",
        "ExecStartPre=+/bin/x",
        "Slice=system.slice",
        "User=root",
        "OOMPolicy=kill",
    ],
)
def test_in_a_conf_that_was_in_force_what_is_refused_now_keeps_its_own_service_from_starting(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version let it through. Neither is it in a unit, nor does the service start without it; others do, also
    one that takes it back."""
    text = f"[Train]\nService.{line}\n[Train a]\nScript=/s.py\nService.Nice=5\n"
    text += f"[Train b]\nScript=/s.py\nService.{line.partition('=')[0]}=\nService.Nice=7\nService.OldName=1\n"
    file, facts = ConfFile("/c", text, applied=True), make_host()
    config = parse_config([file], facts)
    assert len(config.warnings) == 1 and "OldName" in config.warnings[0] and "passed over" in config.warnings[0]
    inputs = Inputs(config, facts, (file,), {}, {})
    (problem,) = inputs.refusals()["torchpar-train@a.service"]
    assert str(problem).startswith(f"/c:2: [Train a] Service.{line}: ") and len(inputs.refusals()) == 1
    assert make_questions(config) and add_questions(config, {})
    compiled = compile_as_applied(inputs)
    units = compiled.content.files
    assert "exit 78" in units["torchpar-train@a.service.d/20-torchpar.conf"]
    assert f"\n{line}\n" not in "".join(units.values())
    assert "Nice=7" in units["torchpar-train@b.service.d/20-torchpar.conf"]
    assert any(f"{problem}; it cannot start" in warning for warning in compiled.warnings)
    with pytest.raises(ConfigError):
        parse_config([ConfFile("/c", text)], facts)


def test_a_job_that_nobody_declared_gets_no_directive_that_is_refused_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """[Train] of the conf in force holds for it too."""
    file, facts = ConfFile("/c", "[Train]\nService.User=root\n", applied=True), make_host()

    def load(files: tuple[ConfFile, ...]) -> Inputs:
        return Inputs(parse_config(files, facts), facts, files, {}, {})

    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(run, "read_active", lambda store: (None, Content({}, {}, "", (file,), {})))
    with pytest.raises(ConfigError, match="/c:2: .*Service.User=root: torchpar sets User= itself"):
        run._read(conf_of([]))


def test_the_shipped_units_set_nothing_that_a_default_of_systemd_would_undo() -> None:
    """What is passed on sorts after them; what they decide for all is not passed on."""
    decided = {"Type", "Slice", "User", "KillMode", "NotifyAccess", "OOMPolicy", "ExecStop", "ExecStopPost", "Sockets"}
    lines = "\n".join(path.read_text() for path in SHIPPED)
    for name in decided:
        assert re.search(f"^{name}=", lines, re.M) and name not in PASSED


@pytest.mark.parametrize("name", ["CapabilityBoundingSet", "AmbientCapabilities"])
def test_a_capability_that_is_none_is_refused(name: str) -> None:
    """systemd drops it without a word, and of CAP_KILL,CAP_CHOWN the whole set is left empty."""
    for value in ("CAP_SYS_NCE", "CAP_KILL,CAP_CHOWN", "~CAP_FOO", "sys_nice", "64", "-1"):
        with pytest.raises(ConfigError, match=rf"/c:3: .* Service.{name}=: '.*' is no capability, see "):
            service_of(f"Service.{name}={value}")
    for value in ("", "~", "~CAP_SYS_ADMIN CAP_KILL", "cap_sys_nice", "CAP_CHECKPOINT_RESTORE", "21", "'CAP_KILL'"):
        assert service_of(f"Service.{name}={value}")


def test_a_capability_that_is_none_stays_where_it_was_in_force() -> None:
    """The service ran as systemd has read it, and starts so after a boot with other hardware too."""
    text = "[Train a]\nScript=/s.py\nService.AmbientCapabilities=CAP_SYS_NCE CAP_KILL\n"
    file, facts = ConfFile("/c", text, applied=True), make_host()
    config = parse_config([file], facts)
    (warning,) = config.warnings
    assert warning.startswith("/c:3: ") and "'CAP_SYS_NCE' is no capability" in warning
    units = compile_as_applied(Inputs(config, facts, (file,), {}, {})).content.files
    unit = units["torchpar-train@a.service.d/20-torchpar.conf"]
    assert "AmbientCapabilities=CAP_SYS_NCE CAP_KILL" in unit and "exit 78" not in unit
