"""`torchpar status`: what a person sees, at 80 columns and in a pipe."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.unit.daemon.test_client import ANSWER, SERVICE
from torchpar.cli.main import run
from torchpar.cli.status import say_moved
from torchpar.contract.typed_json import shape
from torchpar.daemon.client import parse_answer
from torchpar.daemon.state import Moved
from torchpar.host import systemd

SPEED = {
    "steps": 30, "steps_per_second": 5.25, "samples_per_second": 320.0, "loader_wait_share": 0.05, "bound": "compute",
    "silent_seconds": 1.0,
}  # fmt: skip
BUSY = {
    **SERVICE, "state_age_seconds": 3 * 3600.0, "throughput": SPEED, "cpus_used": 3.8, "memory_limit_bytes": 2**32,
    "memory_bytes": 1288490188,
}  # fmt: skip
FAILED = {
    **SERVICE, "unit": "torchpar-train@mlp.service", "name": "mlp", "state": "failed", "main_pid": 0, "placed": None,
    "cpus_used": None, "memory_bytes": None, "state_age_seconds": 250.0, "restarts_in_10_minutes": 5,
    "failure": {"why": "exit status 1", "said": "ValueError: bad"},
    "wrong": [{
        "what": "crash-loop",
        "text": "fails again and again: exit status 1: ValueError: bad; see: torchpar logs train@mlp",
    }],
}  # fmt: skip
WEB = {
    **SERVICE, "unit": "torchpar-infer@web.service", "kind": "infer", "name": "web", "listen": ["127.0.0.1:8000"],
    "cpus_used": None, "memory_bytes": None,
    "serving": {
        "requests_per_second": 41.25, "errors_per_second": 0.0, "p99_seconds": 0.025, "queued_requests": 2,
        "silent_seconds": 1.0,
    },
}  # fmt: skip
JOB = {**SERVICE, "unit": "torchpar-run-x-7.service", "kind": "run", "name": "x-7", "placed": None}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torchpard answers, which a test may change; on a terminal of 80 columns."""
    answer: dict[str, Any] = {**ANSWER}
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    # By way of its text: a test may not answer what torchpard could not.
    monkeypatch.setattr("torchpar.cli.status.ask_daemon", lambda: parse_answer(json.dumps(answer).encode()))
    monkeypatch.setenv("COLUMNS", "80")
    return answer


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = run(["status", *arguments])
    return status, capsys.readouterr().out


def test_what_is_well_and_what_is_not_at_80_columns(host: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong is marked, and the exit status says so."""
    host.update(services=[BUSY, FAILED, WEB, JOB], well=False)
    assert show(capsys) == (
        1,
        "  train@a    running 3 h; as planned; CPUs 0-3\n"
        "             320 samples/s; waits 5 % for data; step 30; CPU 3.8 of 4; memory\n"
        "             1.2 GiB of 4 GiB\n"
        "! train@mlp  failed 4 min ago, 5 restarts in 10 min\n"
        "             fails again and again: exit status 1: ValueError: bad; see:\n"
        "             torchpar logs train@mlp\n"
        "  infer@web  running 8 s; as planned; CPUs 0-3; on 127.0.0.1:8000\n"
        "             41.2 requests/s; p99 under 25 ms; no errors; 2 queued\n"
        "  run-x-7    running 8 s\n"
        "             CPU 3.5 of 4; memory 1 GiB\n"
        "\n"
        "  generation 3, as the conf says\n",
    )


def test_in_a_pipe_a_service_is_one_line(
    host: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That grep finds as a whole."""
    monkeypatch.delenv("COLUMNS")
    wrong = [{"what": "conf", "text": "the conf is newer than generation 3"}]
    host.update(services=[BUSY, FAILED], wrong=wrong, conf="newer", well=False)
    status, shown = show(capsys)
    lines = shown.splitlines()
    assert (status, len(lines)) == (1, 5)
    assert lines[1].startswith("! train@mlp  failed 4 min ago, 5 restarts in 10 min; fails again and again: ")
    assert lines[3:] == ["  generation 3, conf newer", "! the conf is newer than generation 3"]


@pytest.mark.parametrize(
    ("names", "status", "shown"),
    [
        (["a"], 0, ["train@a"]),
        (["mlp"], 1, ["train@mlp"]),
        (["train@a", "torchpar-infer@web.service"], 0, ["train@a", "infer@web"]),
        (["run-x-7"], 0, ["run-x-7"]),
        (["torchpar-run-x-7.service"], 0, ["run-x-7"]),
        (["web", "web"], 0, ["infer@web"]),
    ],
)
def test_all_ways_to_name_a_service_work(
    host: dict[str, Any], capsys: pytest.CaptureFixture[str], names: list[str], status: int, shown: list[str]
) -> None:
    """And the exit status is of those that are named; so is what --json has."""
    host.update(services=[BUSY, FAILED, WEB, JOB], wrong=[{"what": "host", "text": "something else"}], well=False)
    code, said = show(capsys, *names)
    heads = [line[2:].split()[0] for line in said.partition("\n\n")[0].splitlines() if line[2] != " "]
    assert (code, heads) == (status, shown)
    code, said = show(capsys, "--json", *names)
    assert (code, len(json.loads(said)["services"])) == (status, len(shown))


def test_a_mistyped_name_has_the_nearest(host: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """With exit status 64, and nothing on stdout."""
    host.update(services=[BUSY, FAILED])
    assert run(["status", "mpl"]) == 64
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "torchpar: no service 'mpl' is in force or runs; did you mean train@mlp?\n")


def test_nothing_of_a_job_reaches_the_terminal(host: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """What it says of itself is a line of letters."""
    said = "\x1b]0;x\x07\u202e\x9b2J" + "y" * 5000
    wrong = [{"what": "drift", "text": said}]
    row = {**FAILED, "wrong": wrong, "loading": said, "failure": {"why": "x", "said": said}, "throughput": SPEED}
    host.update(services=[row, {**row, "wrong": []}], wrong=wrong)
    status, shown = show(capsys)
    assert status == 1 and all(line.isprintable() and len(line) <= 80 for line in shown.split("\n"))
    assert len(shown) < 6000


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"throughput": {**SPEED, "samples_per_second": 0}}, "5.25 steps/s; waits 5 % for data; step 30"),
        ({"throughput": {**SPEED, "samples_per_second": 12345.678}}, "12346 samples/s; waits 5 % for data; step 30"),
        ({"throughput": {**SPEED, "loader_wait_share": 0.6}, "loading": "waited"}, "320 samples/s; step 30"),
        ({"throughput": SPEED, "hang": "hangs", "wrong": [{"what": "hang", "text": "hangs"}]}, "step 30"),
        ({"restarts_in_10_minutes": 1, "failure": {"why": "killed by SIGKILL", "said": None}}, "killed by SIGKILL"),
    ],
)
def test_the_second_line_says_what_it_does(
    host: dict[str, Any], capsys: pytest.CaptureFixture[str], changes: dict[str, Any], line: str
) -> None:
    """Without what would not be so: a rate of a job that hangs, or a share that the advice has too."""
    host.update(services=[{**SERVICE, "cpus_used": None, "memory_bytes": None, **changes}])
    assert show(capsys)[1].splitlines()[1].strip() == line


@pytest.mark.parametrize(
    ("row", "moved", "first", "used"),
    [
        ({}, {"beside": "train@b"}, "running 8 s; CPUs 0-1, planned 0-3", "CPU 3.5 of 2"),
        ({}, {"cpus": "0-5", "borrowed_cpus": "4-5"}, "running 8 s; CPUs 0-5, planned 0-3", "CPU 3.5 of 6"),
        ({}, {"cpus": "0-3"}, "running 8 s; as planned; CPUs 0-3", "CPU 3.5 of 4"),
        ({"placed": "drift"}, {}, "running 8 s; not as planned; CPUs 0-1, planned 0-3", "CPU 3.5 of 2"),
        ({"placed": "drift", "running_cpus": "7"}, None, "running 8 s; not as planned; CPUs 7, planned 0-3", "of 4"),
        ({"placed": "drift", "running_cpus": "7"}, {}, "running 8 s; not as planned; CPUs 7, planned 0-3", "of 2"),
        ({"placed": "unknown"}, {}, "running 8 s; CPUs 0-1, planned 0-3", "CPU 3.5 of 2"),
        ({"kind": "run", "placed": None, "cpus": "0-1", "given_cpus": 2}, {}, "running 8 s; CPUs 0-1, ", "of 2"),
    ],
)
def test_a_service_is_shown_where_it_is_and_not_only_where_it_was_planned(
    host: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    row: dict[str, Any],
    moved: dict[str, Any] | None,
    first: str,
    used: str,
) -> None:
    told = {"unit": SERVICE["unit"], "cpus": "0-1", "planned_cpus": "0-3", "beside": "", "since_timestamp_seconds": 1.0}
    host.update(services=[{**SERVICE, **row}], moved=[] if moved is None else [{**told, **moved}])
    lines = show(capsys)[1].splitlines()
    assert first in lines[0] and used in lines[1]


def test_a_long_name_has_a_line_for_itself(host: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """So that what is said of it is not in a narrow column."""
    name = "n" * 60
    host.update(services=[{**SERVICE, "unit": f"torchpar-train@{name}.service", "name": name}])
    assert show(capsys)[1].splitlines()[:2] == [f"  train@{name}", "    running 8 s; as planned; CPUs 0-3"]


def test_who_may_not_ask_is_told_that_and_not_that_the_daemon_is_dead(
    host: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot tell whether all is well: 3. Where nobody answers something is wrong: 1."""
    seen: dict[str, Any] = {**ANSWER, "services": [], "notices": [], "wrong": []}
    monkeypatch.setattr("torchpar.cli.status.ask_daemon", lambda: None)
    monkeypatch.setattr("torchpar.cli.status.observe", lambda *_: seen)
    monkeypatch.setattr("torchpar.cli.status.may_not_ask", lambda: True)
    status, shown = show(capsys)
    assert status == 3 and "members of the group torchpar only" in " ".join(shown.split()) and "!" not in shown
    assert json.loads(show(capsys, "--json")[1])["well"] is None, "what is wrong may be among what is not seen"
    seen["wrong"] = [{"what": "host", "text": "bad"}]
    assert json.loads(show(capsys, "--json")[1])["well"] is False
    seen["wrong"] = []
    monkeypatch.setattr("torchpar.cli.status.may_not_ask", lambda: False)
    status, shown = show(capsys)
    assert status == 1 and "! torchpard does not answer" in shown


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"beside": "train@b"}, "has CPUs 0-1 of its 0-3 since {at}: it shares them with train@b"),
        ({}, "has CPUs 0-1 of its 0-3 since {at}: the others are offline"),
        ({"cpus": "0-3"}, "has all of its CPUs again since {at}"),
        (
            {"borrowed_cpus": "4-5", "lenders": "infer@d"},
            "has CPUs 0-1 since {at}: it borrows 4-5 of infer@d",
        ),
        (
            {"borrowed_cpus": "4-5", "lenders": "infer@d", "beside": "train@b"},
            "has CPUs 0-1 since {at}: it borrows 4-5 of infer@d, and shares its own with train@b",
        ),
        ({"lent_cpus": "1", "lent_to": "train@b"}, "is idle, and lends CPUs 1 to train@b"),
    ],
)
def test_where_a_service_is_that_was_moved_and_why(more: dict[str, str], said: str) -> None:
    said = said.format(at=time.strftime("%H:%M:%S", time.localtime(10.0)))
    moved = {"unit": "torchpar-train@a.service", "cpus": "0-1", "planned_cpus": "0-3", "beside": "", **more}
    assert say_moved(shape({**moved, "since_timestamp_seconds": 10.0}, Moved)) == f"train@a {said}"
