"""`torchpar top`: what stands on the screen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.cli.test_status import BUSY, FAILED, JOB, SPEED, WEB
from tests.unit.daemon.test_client import ANSWER, SERVICE
from torchpar.cli.main import run
from torchpar.cli.top import make_screen
from torchpar.daemon.client import parse_answer
from torchpar.daemon.state import parse_state
from torchpar.host import systemd


def screen(width: int, *services: dict[str, Any], note: str = "", **answer: Any) -> list[str]:
    """The lines for these services."""
    answer = {**ANSWER, "services": list(services), **answer}
    assert parse_answer(json.dumps(answer).encode())
    return make_screen(parse_state(json.loads(json.dumps(answer))), note, "12:34:56", width)


def test_the_screen_at_80_columns() -> None:
    """What is wrong is above, and said below; what runs comes before what does not."""
    stopped = {**SERVICE, "unit": "torchpar-train@z.service", "name": "z", "state": "stopped", "main_pid": 0}
    stopped |= {"state_age_seconds": None, "cpus_used": None, "memory_bytes": None}
    assert screen(80, WEB, stopped, BUSY, FAILED, JOB) == [
        "12:34:56  generation 3, conf in sync; 3 of 5 running; 1 wrong",
        "",
        "  SERVICE    STATE             SPEED            WAIT       CPU    CPUS  MEMORY",
        "! train@mlp  failed 4 min ago  -                -          -      -     -",
        "  infer@web  running 8 s       41.2 requests/s  p99 25 ms  -      0-3   -",
        "  run-x-7    running 8 s       -                -          3.5/4  0-3   1 GiB",
        "  train@a    running 3 h       320 samples/s    5 %        3.8/4  0-3   1.2 GiB",
        "  train@z    stopped           -                -          -      -     -",
        "",
        "! train@mlp fails again and again: exit status 1: ValueError: bad; see: torchpar",
        "  logs train@mlp",
    ]


def test_no_line_is_wider_than_the_terminal() -> None:
    """Long names lose their middle, as their ends tell them apart; what a job says is escaped."""
    names = [f"{'n' * 80}{end}" for end in ("1", "2")]
    rows = [{**BUSY, "unit": f"torchpar-train@{name}.service", "name": name} for name in names]
    rows[0]["wrong"] = [{"what": "drift", "text": "\x1b[2J" + "w" * 3000}]
    rows[1] |= {"hang": "hangs", "throughput": {**SPEED, "silent_seconds": 600.0}, "cpus": "0,2,4,6,8,10,12,14,16,18"}
    for width in (40, 80, 200):
        lines = screen(width, *rows, wrong=[{"what": "host", "text": "x" * 500}])
        assert all(len(line) <= width and line.isprintable() for line in lines), width
    assert "nnn1  running" in lines[3] and "nnn2  running" in lines[4] and "0,2,4,6,8,..." in lines[4]
    assert "none for 10 min" in lines[4]


def test_all_is_well_where_nothing_is_wrong_and_all_is_seen() -> None:
    """What is wrong counts, whether all is seen or not."""
    assert screen(80, BUSY)[0].endswith("; all is well") and screen(80, BUSY, note="a note")[0].endswith("can be seen")
    assert screen(80, FAILED, note="a note")[0].endswith("; 1 wrong")


def test_once_is_for_scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And so is whatever is no terminal, which is left as it is; --json has all."""
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    answer = {**ANSWER, "services": [BUSY]}
    monkeypatch.setattr("torchpar.cli.top.read_answer", lambda: (answer, "a note"))
    for words in (["--once"], []):
        assert run(["top", *words]) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said and said.endswith("a note\n")
        assert said.splitlines()[0].endswith("; not all can be seen"), "the note says why"
    assert run(["top", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
