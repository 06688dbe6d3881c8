"""Why a generation was taken back is kept, the last first, and decides nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchpar.generations.rollbacks import NOT_CONFIRMED, find_rollback, note_rollback, read_rollbacks
from torchpar.generations.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "torchpar").mkdir()
    return Store(tmp_path / "torchpar")


def test_the_last_is_found_unless_it_came_back(store: Store) -> None:
    note_rollback(store, 6, 5, NOT_CONFIRMED)
    note_rollback(store, 8, 7, "ada ran torchpar rollback")
    note_rollback(store, 7, 8, "ada ran it")
    rollbacks = read_rollbacks(store)
    assert [each.number for each in rollbacks] == [7, 8, 6]
    found = find_rollback(rollbacks, 6)
    assert found and found.say().endswith(": it was not confirmed in time") and found.say().startswith("was taken back")
    assert [each.person for each in rollbacks] == ["", "ada", ""]
    assert find_rollback(rollbacks, 8) is None and find_rollback(rollbacks, 9) is None


def test_few_are_kept(store: Store) -> None:
    for number in range(1, 40):
        note_rollback(store, number + 1, number, "x")
    assert len(read_rollbacks(store)) == 20


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"version": 2, "rollbacks": []}', "x" * 2**17,
             '{"version": 1, "rollbacks": [{"number": 1, "back": 2, "why": "", "timestamp_seconds": 1e18}]}']
)  # fmt: skip
def test_what_it_did_not_write_is_none(store: Store, text: str) -> None:
    (store.directory / "rollbacks.json").write_text(text)
    assert read_rollbacks(store) == ()
    note_rollback(store, 2, 1, "x")
    assert [each.number for each in read_rollbacks(store)] == [2]


def test_a_disk_that_cannot_be_written_is_no_failure(store: Store) -> None:
    os.rmdir(store.directory)
    note_rollback(store, 2, 1, "x")
    assert read_rollbacks(store) == ()


def test_a_reason_that_no_terminal_can_show_is_none(store: Store) -> None:
    note_rollback(store, 2, 1, "\x1b[2J")
    assert read_rollbacks(store) == ()
