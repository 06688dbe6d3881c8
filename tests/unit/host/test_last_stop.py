"""How the last stop of a job went, by the note that it leaves where its user may put anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchpar.host import last_stop
from torchpar.host.last_stop import LastStop, LastStops


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host a thread may begin late."""
    monkeypatch.setattr(last_stop, "_SECONDS", 60.0)


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """That of the job a."""
    (tmp_path / "a").mkdir()
    return tmp_path / "a/torchpar-stop"


def read(note: Path) -> LastStop | None:
    return LastStops(str(note.parent.parent)).read("a")


def test_what_was_noted_is_read(note: Path) -> None:
    """And where nothing was, no stop was forced."""
    assert read(note) == LastStop(None, 0)
    note.write_text("37 2\n")
    assert read(note) == LastStop(37, 2)
    assert LastStops(str(note.parent.parent)).read("another") == LastStop(None, 0)


@pytest.mark.parametrize("text", ["", "37", "37 2", "-1 2\n", "37 x\n", "1 2 3\n", f"{'9' * 30} 2\n", "nan 2\n"])
def test_anything_else_is_no_note(note: Path, text: str) -> None:
    note.write_text(text)
    assert read(note) is None


def test_no_link_leads_elsewhere_and_no_pipe_holds(note: Path) -> None:
    elsewhere = note.parent.parent / "elsewhere"
    elsewhere.write_text("37 2\n")
    note.symlink_to(elsewhere)
    assert read(note) is None
    note.unlink()
    os.mkfifo(note)
    assert read(note) is None
