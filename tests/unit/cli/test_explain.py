"""What `torchpar explain` adds of a service that runs."""

from __future__ import annotations

import pytest

from torchpar.cli.explain import _echo_processes
from torchpar.contract.reports import RankReport, make_rank_json, parse_rank_json

REPORT = RankReport(
    pid=7, local_rank=0, torch="2.6.0", threads=2, interop_threads=1, cpus="0-1", allocator="jemalloc", processes=2,
    why="a request costs 80 us beside the 50 us in which a row is computed: 2 event loops share 2 CPUs",
)  # fmt: skip


def test_an_inference_service_tells_how_many_processes_it_has_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    """By what it measured itself; what a process writes of itself may hold anything."""
    _echo_processes([REPORT], 100)
    assert capsys.readouterr().out == (
        "  Processes=2 on the place with CPUs 0-1, as it runs\n"
        "      a request costs 80 us beside the 50 us in which a row is computed: 2 event loops share 2 CPUs\n"
    )


def test_a_report_of_an_older_server_has_one_process() -> None:
    text = make_rank_json(REPORT)
    assert parse_rank_json(text.encode()) == REPORT
    older = text.replace(', "processes": 2', "").replace(f', "why": "{REPORT.why}"', "")
    report = parse_rank_json(older.encode())
    assert report and (report.processes, report.why) == (1, "")
