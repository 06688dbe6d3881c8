"""What the journal answers, and that no answer is not the answer that there is nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from torchpar.host import journal

UNIT = "torchpar-train@a.service"


class FakeJournalctl:
    """Prints `entries`, ends with `status`, or takes too long."""

    def __init__(self, *entries: object, status: int = 0, slow: bool = False) -> None:
        self.text, self.status, self.slow = "".join(f"{json.dumps(entry)}\n" for entry in entries), status, slow

    def __call__(self, argv: list[str], *, timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
        assert argv[0] == "journalctl"
        if self.slow:
            raise subprocess.TimeoutExpired(argv, timeout, self.text.encode())
        return subprocess.CompletedProcess(argv, self.status, self.text, "")


@pytest.fixture
def readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A journal that this user may read."""
    (tmp_path / "system.journal").touch()
    monkeypatch.setattr(journal, "_FILES", (f"{tmp_path}/*.journal",))
    return monkeypatch


@pytest.mark.parametrize(
    ("journalctl", "counted"),
    [
        (FakeJournalctl({"UNIT": UNIT}, [], {"UNIT": UNIT}), {UNIT: 2}),
        (FakeJournalctl(), {}),
        (FakeJournalctl({"UNIT": UNIT}, slow=True), None),
        (FakeJournalctl({"UNIT": UNIT}, status=1), None),
    ],
)
def test_restarts_are_unknown_where_the_journal_does_not_answer(
    readable: pytest.MonkeyPatch, journalctl: FakeJournalctl, counted: dict[str, int] | None
) -> None:
    """Nothing in it is known, and is not the same: a crash loop would count as over."""
    readable.setattr(subprocess, "run", journalctl)
    assert journal.Journal().count_restarts([UNIT], 600) == counted


def test_lines_and_entries_are_none_where_the_journal_does_not_answer(readable: pytest.MonkeyPatch) -> None:
    """A missing last word takes nothing from a failure."""
    readable.setattr(subprocess, "run", FakeJournalctl({"MESSAGE": "one\ntwo"}, {"MESSAGE": [104, 105]}, {}))
    told = ("one", "two", "hi", "(a line of more than 4 KiB)")
    assert journal.Journal().read_last_lines(UNIT, 1.0, None) == told and journal.has_entries(UNIT)
    readable.setattr(subprocess, "run", FakeJournalctl(slow=True))
    assert journal.Journal().read_last_lines(UNIT, None, 2.0) == () and not journal.has_entries(UNIT)
