"""What keeps a service from starting: files that systemd would open as root, and that others can change."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.unit.hosts import make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.generations import guard
from torchpar.host import reach, systemd
from torchpar.plan.ownership import opened_questions
from torchpar.plan.plan import make_plan
from torchpar.plan.questions import Identity, Need, Question, Verdict
from torchpar.units.drop_ins import make_units

TLS = "[Infer a]\nModel=/m.pt\nTLSCertificate=/etc/c.pem\nTLSKey=/etc/100% k.pem\n"


def test_a_service_for_which_systemd_opens_files_requires_the_look_at_them() -> None:
    """Of its own mounts, each start anew; a service without such files has nothing before it."""
    facts = make_host()
    plan = make_plan(parse_config([ConfFile("/c", TLS + "[Train b]\nScript=/b.py\n")], facts), facts)
    files = make_units(plan).files
    assert files["torchpar-guard@torchpar-infer@a.service.d/20-torchpar.conf"] == (
        "# Made by torchpar from /c. Do not edit; see: torchpar explain a\n[Unit]\n"
        'RequiresMountsFor=/etc/c.pem "/etc/100%% k.pem"\n\n[Service]\nExecStart=\n'
        "ExecStart=:/usr/lib/torchpar/guard torchpar-infer@a.service TLSCertificate=/etc/c.pem "
        '"TLSKey=/etc/100%% k.pem"\n'
    )
    requires = "Requires=torchpar-guard@%N.service\nAfter=torchpar-guard@%N.service\n"
    assert requires in files["torchpar-infer@a.service.d/20-torchpar.conf"]
    assert "guard" not in files["torchpar-train@b.service.d/20-torchpar.conf"]
    assert not any("guard@torchpar-train" in path for path in files)


@pytest.mark.parametrize(("version", "guarded"), [(252, False), (253, True), (None, True)])
def test_what_is_left_out_for_an_older_systemd_keeps_nothing_from_starting(version: int | None, guarded: bool) -> None:
    """It opens nothing. What it has beside is looked at on its own."""
    facts = dataclasses.replace(make_host(), systemd_version=version)
    for others, names in (("", ""), ("Service.EnvironmentFile=/etc/b\n", "Service.EnvironmentFile=/etc/b")):
        text = f"[Train a]\nScript=/a.py\nService.OpenFile=/etc/a\n{others}"
        files = make_units(make_plan(parse_config([ConfFile("/c", text)], facts), facts)).files
        unit = files["torchpar-train@a.service.d/20-torchpar.conf"]
        guard_unit = files.get("torchpar-guard@torchpar-train@a.service.d/20-torchpar.conf", "")
        assert ("OpenFile=" in unit) == ("OpenFile=" in guard_unit) == guarded and names in guard_unit
        assert ("torchpar-guard@" in unit) == bool(guard_unit) == bool(guarded or others)


def test_what_others_could_change_is_named_with_its_key(tmp_path: Path) -> None:
    """A file, a folder on the way, a folder in the place of a file; what is not there is systemd's to say."""
    assert guard.problems("TLSKey", "/etc/passwd") == []
    assert guard.problems("TLSKey", "/etc/no/such") == []
    assert guard.problems("TLSKey", "/etc") == [
        "TLSKey=/etc: is a folder, and all that is in it would be read; name a file"
    ]
    assert guard.problems("Service.BindPaths", "/etc/") == []
    key = tmp_path / "k"
    key.touch()
    key.chmod(0o666)
    (problem,) = guard.problems("TLSKey", str(key))
    mine = "can be written by others than root (mode 0666)" if os.geteuid() == 0 else "does not belong to root"
    assert problem.startswith(f"TLSKey={key}: ") and problem.endswith(mine)


def test_a_pipe_in_the_place_of_a_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd itself opens an EnvironmentFile=, and does nothing else until somebody opens the other end."""
    pipe = tmp_path / "variables"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    monkeypatch.setattr(guard, "find_strangers", lambda path, owners: iter(()))
    monkeypatch.setattr(reach, "find_strangers", lambda path, owners, shared: iter(()))
    for path in map(str, (pipe, tmp_path / "link")):
        (problem,) = guard.problems("Service.EnvironmentFile", path)
        assert problem.startswith(f"Service.EnvironmentFile={path}: is a pipe (FIFO), at whose other end systemd ")
        answer = reach.look_whose(Question(path, Need.OWN_NO_PIPE), 0, Identity(None))
        assert answer.verdict is Verdict.BROKEN and problem.endswith(answer.why)
    assert guard.problems("Service.OpenFile", str(pipe)) and not guard.problems("Service.EnvironmentFile", "/dev/null")


@pytest.mark.parametrize("key", ["StandardInput", "StandardOutput", "StandardError", "LoadCredential"])
def test_a_pipe_that_the_process_of_a_service_opens_is_its_own_affair(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits there for the other end alone, which may be what is meant."""
    pipe = str(tmp_path / "log")
    os.mkfifo(pipe)
    monkeypatch.setattr(guard, "find_strangers", lambda path, owners: iter(()))
    monkeypatch.setattr(reach, "find_strangers", lambda path, owners, shared: iter(()))
    assert guard.problems(f"Service.{key}", pipe) == []
    value = {"LoadCredential": f"a:{pipe}"}.get(key, f"file:{pipe}")
    text = f"[Train a]\nScript=/a.py\nService.{key}={value}\n"
    (service,) = parse_config([ConfFile("/c", text)], make_host()).services
    ((identity, (question,)),) = opened_questions(service).items()
    assert reach.look_whose(question, 0, identity).verdict is Verdict.ALLOWED


def test_the_line_is_in_the_journal_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the status is one for which nothing is tried again; a unit without its list is not passed."""
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(systemd, "say_of", lambda unit, text: said.append((unit, text)))
    for named, status, words in (
        (["TLSKey=/etc/passwd"], 0, ""),
        (["TLSKey=/etc", "TLSCertificate=/etc/passwd"], 78, "TLSKey=/etc: is a folder"),
        ([], 78, "run: torchpar apply"),
    ):
        said.clear()
        monkeypatch.setattr(sys, "argv", ["guard", "torchpar-infer@a.service", *named])
        with pytest.raises(SystemExit) as ended:
            guard.main()
        assert ended.value.code == status
        assert [words in text for _, text in said] == [True] * bool(words)


def test_without_a_journal_it_is_the_same_but_for_the_line_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A journal that is stopped, or has no room; the status is still the one for which nothing is tried again."""

    class Refused(socket.socket):
        """Whom nobody hears."""

        def sendto(self, *arguments: object) -> int:
            raise ConnectionRefusedError

    monkeypatch.setattr(socket, "socket", Refused)
    monkeypatch.setattr(sys, "argv", ["guard", "torchpar-infer@a.service", "TLSKey=/etc"])
    with pytest.raises(SystemExit) as ended:
        guard.main()
    assert ended.value.code == 78 and "TLSKey=/etc: is a folder" in capsys.readouterr().err
