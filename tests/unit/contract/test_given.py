"""The file by which torchpard tells a service its CPUs, both ways."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.given import Given, GivenRank, Loan, make_given_json, parse_given, read_given

UNIT = "torchpar-train@a.service"
GIVEN = Given(
    UNIT,
    "0123abcd",
    (GivenRank(CpuSet.parse("0-1"), 2), GivenRank(CpuSet.parse("2"), 1)),
    (GivenRank(CpuSet.parse("0-3"), 4), GivenRank(CpuSet.parse("0-3"), 4)),
    since=1.5,
    why="train@b",
    had=(CpuSet.parse("0-3"),),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    (tmp_path / UNIT).write_text(make_given_json(GIVEN))
    assert read_given(UNIT, str(tmp_path)) == GIVEN
    assert read_given("torchpar-train@b.service", str(tmp_path)) is None


def test_so_is_what_is_lent(tmp_path: Path) -> None:
    own = (GivenRank(CpuSet.parse("0"), 1),) * 2
    loans = (Loan("torchpar-infer@c.service", CpuSet.parse("1-2")),)
    given = dataclasses.replace(GIVEN, own=own, loans=loans, lent_to="train@b")
    assert parse_given(make_given_json(given).encode()) == given
    assert parse_given(make_given_json(dataclasses.replace(given, own=own[:1])).encode()) is None


def test_anything_else_is_nothing(tmp_path: Path) -> None:
    text = make_given_json(GIVEN)
    for wrong in ("", "{}", "[", text.replace('"version": 1', '"version": 2'), text.replace('"2"', '""'), text[:-9]):
        assert parse_given(wrong.encode()) is None, wrong
    (tmp_path / UNIT).symlink_to("/etc/passwd")
    assert read_given(UNIT, str(tmp_path)) is None


def test_it_is_moved_once_it_has_had_other_cpus_than_planned() -> None:
    planned = (GivenRank(CpuSet.parse("0-3"), 4),)
    assert not Given(UNIT, "1", planned, planned, 0.0).is_moved
    assert Given(UNIT, "1", planned, planned, 0.0, had=(CpuSet.parse("0-1"),)).is_moved
    assert GIVEN.is_moved and str(GIVEN.cpus) == "0-2" and str(GIVEN.planned_cpus) == "0-3"
