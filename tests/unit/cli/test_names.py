"""What the shell offers for the name of a service, and for a generation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click
import pytest

from tests.unit.verify.fake_host import make_fake_host
from torchpar.cli import names
from torchpar.cli.names import GenerationNumber, ServiceName
from torchpar.host import systemd

COMPLETION = Path(__file__).parents[3] / "debian" / "completion" / "torchpar"
CONF = "[Train demo]\nScript=/a.py\n[Train web]\nScript=/a.py\n[Infer web]\nModel=/b.pt\n"


@pytest.mark.parametrize(
    ("begun", "offered"),
    [
        ("", ["infer@web", "demo", "train@web", "run-x-7"]),
        ("d", ["demo"]),
        ("w", []),
        ("t", ["train@web"]),
        ("train@d", ["train@demo"]),
        ("run", ["run-x-7"]),
        ("torchpar-train@d", ["torchpar-train@demo.service"]),
        ("x", []),
    ],
)
def test_names_of_services_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, offered: list[str]
) -> None:
    """Those in force and those that run; short ones, but where two services have one name."""
    host = make_fake_host(tmp_path)
    host.text = CONF
    host.apply()
    host.systemd.runs["torchpar-run-x-7.service"] = "now"
    monkeypatch.setattr(names, "Store", lambda: host.store)
    for door in ("running_services", "ad_hoc_jobs"):
        monkeypatch.setattr(systemd, door, getattr(host.systemd, door))
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    command = click.Command("x")
    argument = click.Argument(["name"])
    found = [item.value for item in ServiceName().shell_complete(click.Context(command), argument, begun)]
    assert found == offered
    numbers = GenerationNumber().shell_complete(click.Context(command), argument, "")
    assert [item.value for item in numbers] == ["1"]


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("line", "words", "count", "replies"),
    [
        ("torchpar status tr", "torchpar status tr", 2, ["train@demo"]),
        ("torchpar status train@d", "torchpar status train@d", 2, ["demo"]),
        ("torchpar status ", "torchpar status ", 2, ["train@demo"]),
    ],
)
def test_bash_replaces_what_follows_the_at_sign(
    tmp_path: Path, line: str, words: str, count: int, replies: list[str]
) -> None:
    """It breaks words there, so neither the program gets them in pieces nor bash the kind twice."""
    program = tmp_path / "torchpar"
    program.write_text('#!/bin/sh\necho "$COMP_WORDS|$COMP_CWORD" >"$0.asked"\necho plain,train@demo\n')
    program.chmod(0o755)
    script = '. "$1"; COMP_LINE="$2" COMP_POINT=${#2}; COMPREPLY=(); _torchpar; printf "%s\\n" "${COMPREPLY[@]}"'
    path = f"{tmp_path}:{os.environ['PATH']}"
    argv = ["bash", "-c", script, "bash", str(COMPLETION), line]
    done = subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == replies
    assert (tmp_path / "torchpar.asked").read_text() == f"{words}|{count}\n"
