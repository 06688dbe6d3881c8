"""How far the jobs are: what a message is, and the rates that follow from several."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from torchpar.cli.status import speed
from torchpar.contract.typed_json import parse_json, shape
from torchpar.daemon.client import _Throughput
from torchpar.daemon.throughput import Ledger, Report, parse_report

UNIT = "torchpar-train@a.service"
FIRST = Report(local_rank=0, time=100.0, steps=10, samples=640, batches=10, waited=0.5)


def message(**fields: object) -> bytes:
    return json.dumps({"version": 1, **asdict(FIRST), **fields}).encode()


def later(report: Report, seconds: float, steps: int, samples: int, waited: float) -> Report:
    return replace(
        report,
        time=report.time + seconds,
        steps=report.steps + steps,
        samples=report.samples + samples,
        batches=report.batches + steps,
        waited=report.waited + waited,
    )


def test_a_message_is_read_as_it_was_meant() -> None:
    """Also with what a newer runtime may add."""
    assert parse_report(message()) == FIRST
    assert parse_report(message(colour="red")) == FIRST


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 1000,
        b"\xff\xfe",
        message(version=2),
        message(steps=-1),
        message(steps=True),
        message(steps=1.5),
        message(steps=2**60),
        message(samples="9"),
        message(local_rank=None),
        message(waited=float("nan")),
        message(time=float("inf")),
        message(time=10**400),
        message(waited=-(10**400)),
        message(steps=10**400),
        message(time=[1]),
    ],
)
def test_anything_else_is_none(data: bytes) -> None:
    """Whatever a job sends, it is a report or nothing."""
    assert parse_report(data) is None


def test_rates_are_of_the_time_between_reports() -> None:
    """One report has no rate yet; a lost one changes nothing."""
    ledger = Ledger()
    ledger.record(UNIT, 7, FIRST, 1000.0)
    assert ledger.throughput(UNIT, 1000.0) is None
    ledger.record(UNIT, 7, later(FIRST, 4.0, 20, 1280, 0.2), 1004.0)
    assert ledger.throughput(UNIT, 1005.0) == {
        "steps": 30,
        "steps_per_second": 5.0,
        "samples_per_second": 320.0,
        "loader_wait_share": 0.05,
        "bound": "compute",
        "loading": {
            "local_rank": 0, "seconds": 4.0, "waited": pytest.approx(0.2), "fetching": 0.0, "fetched": 0,
            "iterators": 0, "workers": 0, "pageable": False,
        },  # fmt: skip
        "ranks": 1,
        "silent_seconds": 1.0,
    }
    assert ledger.throughput("torchpar-train@b.service", 1005.0) is None


def test_old_reports_leave_the_rate() -> None:
    """A job that has become slow is shown as slow."""
    ledger, report = Ledger(), FIRST
    for i in range(100):
        report = later(report, 2.0, 100 if i < 50 else 1, 100, 1.9)
        ledger.record(UNIT, 7, report, 1000.0 + 2 * i)
    answer = ledger.throughput(UNIT, 1200.0)
    assert answer and answer["steps_per_second"] == 0.5
    assert (answer["loader_wait_share"], answer["bound"]) == (0.95, "loader")


def test_ranks_step_together_and_wait_for_the_slowest_loader() -> None:
    """Samples add up, steps do not, the share is the largest."""
    ledger = Ledger()
    for rank, waited in ((0, 0.0), (1, 1.0)):
        first = replace(FIRST, local_rank=rank)
        ledger.record(UNIT, 7 + rank, first, 1000.0)
        ledger.record(UNIT, 7 + rank, later(first, 2.0, 4, 128, waited), 1002.0)
    answer = ledger.throughput(UNIT, 1002.0)
    assert answer and (answer["steps_per_second"], answer["samples_per_second"]) == (2.0, 128.0)
    assert (answer["loader_wait_share"], answer["bound"], answer["ranks"]) == (0.5, "loader", 2)


def test_a_rate_is_a_number_that_the_commands_take() -> None:
    """Whatever a job says: else the whole answer would be none to them, with all the other jobs in it."""
    ledger = Ledger()
    for rank in range(256):
        first = replace(FIRST, local_rank=rank, time=0.0)
        ledger.record(UNIT, rank, first, 1000.0)
        ledger.record(UNIT, rank, later(first, 1e-300, 2**52, 2**52, 2.0**52), 1000.0)
    answer = ledger.throughput(UNIT, 1000.0)
    taken = shape(parse_json(json.dumps(answer)), _Throughput)
    assert taken.samples_per_second == taken.steps_per_second == 2.0**53 and taken.loader_wait_share == 1.0


@pytest.mark.parametrize(
    ("pid", "report"),
    [(8, later(FIRST, 4.0, 1, 1, 0.0)), (7, replace(FIRST, time=200.0, steps=1)), (7, replace(FIRST, time=1.0))],
    ids=["another process", "fewer steps", "an earlier time"],
)
def test_another_run_begins_anew(pid: int, report: Report) -> None:
    """Its first report and the last of the run before have no rate together."""
    ledger = Ledger()
    ledger.record(UNIT, 7, FIRST, 1000.0)
    ledger.record(UNIT, 7, later(FIRST, 2.0, 2, 2, 0.0), 1002.0)
    ledger.record(UNIT, pid, report, 1004.0)
    assert ledger.throughput(UNIT, 1004.0) is None


def test_a_rank_of_an_earlier_run_is_left_out() -> None:
    """The run before had two, this one has one."""
    ledger = Ledger()
    for rank in (0, 1):
        first = replace(FIRST, local_rank=rank)
        ledger.record(UNIT, 7 + rank, first, 1000.0)
        ledger.record(UNIT, 7 + rank, later(first, 2.0, 4, 128, 0.0), 1002.0)
    ledger.record(UNIT, 17, FIRST, 1100.0)
    ledger.record(UNIT, 17, later(FIRST, 2.0, 4, 128, 0.0), 1102.0)
    answer = ledger.throughput(UNIT, 1102.0)
    assert answer and (answer["ranks"], answer["samples_per_second"]) == (1, 64.0)


def test_what_is_kept_is_bounded() -> None:
    """However many units and ranks somebody sends for; units that are gone are forgotten."""
    ledger = Ledger()
    for i in range(2000):
        ledger.record(UNIT, 7, replace(FIRST, local_rank=i), 1.0)
        ledger.record(f"torchpar-train@{i}.service", 7, FIRST, 1.0)
    assert len(ledger._units) <= 256
    ledger.record(UNIT, 7, FIRST, 2.0)
    for i in range(2000):
        ledger.record(UNIT, 7, replace(FIRST, local_rank=i), 2.0)
    assert len(ledger._units[UNIT]) <= 256
    ledger.keep([UNIT])
    assert list(ledger._units) == [UNIT]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("320 samples/s", "compute: waits 5 %")),
        ({"samples_per_second": 0}, ("5.25 steps/s", "compute: waits 5 %")),
        ({"samples_per_second": 12345.678}, ("12346 samples/s", "compute: waits 5 %")),
        ({"loader_wait_share": 0.431, "bound": "loader"}, ("320 samples/s", "loader: waits 43 %")),
        ({"silent_seconds": 95.0}, ("silent for 95 s", "")),
    ],
)
def test_status_says_how_fast_and_what_holds_it_back(changes: dict[str, object], expected: tuple[str, str]) -> None:
    """In words for a table."""
    throughput = {
        "steps_per_second": 5.25,
        "samples_per_second": 320.0,
        "loader_wait_share": 0.05,
        "bound": "compute",
        "silent_seconds": 1.0,
    }
    assert speed({**throughput, **changes}) == expected
    assert speed(None) == ("", "")
