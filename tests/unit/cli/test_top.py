"""`torchpar top`: what stands on the screen."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import sys
import termios
from typing import Any

import pytest

from tests.unit.cli.test_status import BUSY, FAILED, JOB, SPEED, WEB
from tests.unit.daemon.test_client import ANSWER, SERVICE
from torchpar.cli.main import run
from torchpar.cli.top import ORDERS, Uses, View, make_screen
from torchpar.daemon.client import parse_answer
from torchpar.daemon.state import parse_state
from torchpar.host import systemd
from torchpar.host.rank_use import RankUse


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
        "  SERVICE    STATE         SPEED            WAIT       CPU    CPUS  MEMORY",
        "! train@mlp  failed 4 min  -                -          -      -     -",
        "  infer@web  running 8 s   41.2 requests/s  p99 25 ms  -      0-3   -",
        "  run-x-7    running 8 s   -                -          3.5/4  0-3   1 GiB",
        "  train@a    running 3 h   320 samples/s    5 %        3.8/4  0-3   1.2 GiB",
        "  train@z    stopped       -                -          -      -     -",
        "",
        "! train@mlp fails again and again: exit status 1: ValueError: bad; see: torchpar",
        "  logs train@mlp",
    ]


def test_a_service_that_was_moved_is_shown_where_it_is() -> None:
    moved = {"unit": BUSY["unit"], "cpus": "0-1", "planned_cpus": "0-3", "beside": "b", "since_timestamp_seconds": 1.0}
    assert screen(80, BUSY, moved=[moved])[3].split()[-4:] == ["3.8/2", "0-1", "1.2", "GiB"]


def test_what_has_no_room_is_left_out_as_a_whole() -> None:
    """Of a number that is cut at its end another one would be left."""
    wide = {**BUSY, "unit": f"torchpar-train@{'n' * 40}.service", "name": "n" * 40, "given_cpus": 64}
    for width in range(30, 90):
        shown = screen(width, wide)
        lines = shown[shown.index("") + 1 :][:2]
        columns = len(lines[0].split())
        assert lines[0].split() == ["SERVICE", "STATE", "SPEED", "WAIT", "CPU", "CPUS", "MEMORY"][:columns]
        cells = re.split("  +", lines[1].strip())
        assert cells[1:] == ["running 3 h", "320 samples/s", "5 %", "3.8/64", "0-3", "1.2 GiB"][: columns - 1]
    assert columns == 7


def test_no_line_is_wider_than_the_terminal() -> None:
    """Long names lose their middle, as their ends tell them apart; what a job says is escaped."""
    names = [f"{'n' * 80}{end}" for end in ("1", "2")]
    rows = [{**BUSY, "unit": f"torchpar-train@{name}.service", "name": name} for name in names]
    rows[0]["wrong"] = [{"what": "drift", "text": "\x1b[2J" + "w" * 3000}]
    rows[1] |= {"hang": "hangs", "throughput": {**SPEED, "silent_seconds": 600.0}, "cpus": "0,2,4,6,8,10,12,14,16,18"}
    for width in (40, 80, 200):
        lines = screen(width, *rows, wrong=[{"what": "host", "text": "x" * 500}])
        # How many are wrong is told at any width.
        assert " wrong" in " ".join(lines[: lines.index("")]), width
        assert all(len(line) <= width and line.isprintable() for line in lines), width
    assert "nnn1  running" in lines[3] and "nnn2  running" in lines[4] and "0,2,4,6,8,..." in lines[4]
    assert "none for 10 min" in lines[4]


RANKS = {
    **SPEED,
    "by_rank": [
        {"local_rank": 0, "pid": 71, "steps_per_second": 5.0, "loader_wait_share": 0.02, "silent_seconds": 1.0},
        {"local_rank": 1, "pid": 72, "steps_per_second": 5.0, "loader_wait_share": 0.3, "silent_seconds": 130.0},
    ],
}


def test_each_rank_has_a_line_at_80_columns() -> None:
    """With what its process uses, where that is one of the service's; one that is silent says for how long."""
    row = {**SERVICE, "throughput": RANKS, "cpus_used": 3.8}
    state = parse_state({**ANSWER, "services": [row]})
    uses = Uses(lambda pid, unit: RankUse(10.0 * pid, 2**30, "0-1") if (pid, unit) == (71, SERVICE["unit"]) else None)
    uses.look(state, 100.0)
    uses.read = lambda pid, unit: RankUse(713.0, 2**30, "0-1") if pid == 71 else None
    used = uses.look(state, 102.0)
    lines = make_screen(state, "", "12:34:56", 80, view=View(ranks=True), uses=used)
    assert all(len(line) <= 80 for line in lines)
    assert lines[4].split() == ["rank", "0", "pid", "71", "5", "steps/s", "2", "%", "1.5", "0-1", "1", "GiB"]
    assert lines[5].split() == ["rank", "1", "-", "none", "for", "2", "min", "30", "%", "-", "-", "-"]
    assert not any("rank 1" in line for line in make_screen(state, "", "12:34:56", 80, uses=used))


def test_keys_change_the_order_and_show_ranks() -> None:
    """Each order in turn, and then the first again; what no key means changes nothing."""
    view = View()
    orders = []
    for _ in ORDERS:
        orders.append(view.order)
        view = view.press("s")
    assert orders == list(ORDERS) and view == View()
    assert view.press("r").ranks and view.press("r").press("r") == view and view.press("\x1b") == view
    rows = [{**BUSY, "unit": f"torchpar-train@{n}.service", "name": n, "cpus_used": used} for n, used in USED.items()]
    state = parse_state({**ANSWER, "services": rows})
    for order, first in (("trouble", "a"), ("name", "a"), ("CPU", "b")):
        line = make_screen(state, "", "12:34:56", 80, view=View(order))[3]
        assert line.split()[0] == f"train@{first}", order


USED = {"c": 1.0, "b": 3.0, "a": None}


@pytest.mark.subprocess
def test_it_is_quit_by_a_key_on_a_real_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves it as it was: another process shows it on a terminal of its own, and gets an r and a q."""
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    row = {**SERVICE, "throughput": RANKS}
    monkeypatch.setattr("torchpar.cli.top.read_answer", lambda: ({**ANSWER, "services": [row]}, ""))
    child, terminal = pty.fork()
    if child == 0:
        # Not those of pytest.
        sys.stdin, sys.stdout = open(0), open(1, "w")
        os._exit(run(["top", "--interval", "3600"]))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    said = b""
    for key, until in ((b"r", b"r ranks"), (b"q", b"rank 1"), (b"", b"\x1b[?1049l")):
        while until not in said:
            assert select.select([terminal], [], [], 60)[0], said
            said += os.read(terminal, 4096)
        os.write(terminal, key)
    assert os.waitpid(child, 0)[1] == 0 and said.startswith(b"\x1b[?1049h")
    assert termios.tcgetattr(terminal)[3] & termios.ICANON, "keys come by lines again"
    os.close(terminal)


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
