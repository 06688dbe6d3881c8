"""Facts that a machine exports: elsewhere they give what the machine itself says, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases.test_topology_cases import NAMES
from torchpar.cli.main import run

CONF = """
[Host]
ReserveCores=1

[Train a]
Script=/srv/a.py
User=nobody
Enabled=yes
Ranks=numa

[Train b]
Script=/srv/b.py
Python=/srv/venv/bin/python3
Service.LogExtraFields=FIELD=%n

[Infer c]
Model=/srv/c.pt
CPUs=shared
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_machine_is_planned_for_elsewhere_as_there(
    name: str, unpack: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed, what is warned of, and the exit status; the facts say what is missing on the machine."""
    conf, facts = tmp_path / "conf", tmp_path / "facts.json"
    conf.write_text(CONF)
    root = str(unpack(name))
    assert run(["facts", "--root", root, "--config", str(conf)]) == 0
    facts.write_text(capsys.readouterr().out)

    def said(command: str, *inputs: str) -> tuple[int, str, str]:
        status = run([*command.split(), *inputs, "--config", str(conf)])
        return (status, *capsys.readouterr())

    for command in ("plan", "plan --json", "render", "render --json", "validate", "validate --json", "explain a"):
        there = said(command, "--root", root)
        assert there[1] or there[2]
        assert said(command, "--facts", str(facts)) == there, command
