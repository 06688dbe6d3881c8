"""When a generation that is not confirmed goes: by which clock, and never later than agreed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from torchpar.contract.errors import StoreError
from torchpar.contract.typed_json import ShapeError
from torchpar.generations.store import Store
from torchpar.generations.unconfirmed import begin, parse_unconfirmed
from torchpar.host.clocks import Clocks, read_clocks

HOUR = 3600.0
THEN = Clocks("one boot", monotonic=500.0, since_boot=400.0, time_of_day=1e9)
WAITS = begin(4, 60, THEN)


def later(seconds: float, **changes: object) -> Clocks:
    """The clocks so many seconds later."""
    moved = dataclasses.replace(
        THEN,
        monotonic=THEN.monotonic + seconds,
        since_boot=THEN.since_boot + seconds,
        time_of_day=THEN.time_of_day + seconds,
    )
    return dataclasses.replace(moved, **changes)  # type: ignore[arg-type]


def test_it_is_written_and_read_the_same() -> None:
    """Both ways in one place."""
    for waits in (WAITS, dataclasses.replace(WAITS, restarted=("torchpar-train@a.service",))):
        assert parse_unconfirmed(waits.json()) == waits
    older = json.loads(WAITS.json())
    del older["restarted"]
    assert parse_unconfirmed(json.dumps(older)) == WAITS


@pytest.mark.parametrize("text", ["", "{}", "[]", "x", '{"back": 4, "seconds": "x"}', WAITS.json()[:-9]])
def test_what_torchpar_did_not_write_is_an_error(text: str) -> None:
    """It is never taken for confirmed, nor for another generation."""
    with pytest.raises(ShapeError):
        parse_unconfirmed(text)


@pytest.mark.parametrize("time_of_day", [0.0, 1e9 - HOUR, 1e9, 1e9 + HOUR, 4e9])
def test_within_a_boot_setting_the_clock_changes_nothing(time_of_day: float) -> None:
    """Neither NTP nor a person who sets it."""
    assert WAITS.seconds_left(later(20, time_of_day=time_of_day)) == 40
    assert WAITS.seconds_left(later(61, time_of_day=time_of_day)) == 0


@pytest.mark.parametrize(
    ("time_of_day", "since_boot", "left"),
    [
        (1e9 + 30, 10.0, 30),  # it was off for 20 seconds
        (1e9 + HOUR, 10.0, 0),  # it was off for long
        (0.0, 10.0, 50),  # a clock without battery
        (0.0, 61.0, 0),  # the same, when the time is over all the same
        (1e9 - HOUR, 59.0, 1),
        (4e9, 0.0, 0),
    ],
)
def test_after_another_boot_it_goes_by_the_time_of_day_and_that_boot(
    time_of_day: float, since_boot: float, left: float
) -> None:
    """Whichever is earlier."""
    assert WAITS.seconds_left(Clocks("another boot", 5.0, since_boot, time_of_day)) == left


def test_the_clocks_of_this_host_can_be_read() -> None:
    """Of this boot, which began before now."""
    now = read_clocks()
    assert now.boot_id and 0 <= now.since_boot <= now.monotonic and now.time_of_day > 1e9
    assert begin(1, 60, now).seconds_left(read_clocks()) > 30


def test_a_damaged_file_says_how_to_settle_it(tmp_path: Path) -> None:
    """It neither confirms nor goes back."""
    tmp_path.chmod(0o755)
    (tmp_path / "generations" / "1").mkdir(parents=True)
    (tmp_path / "generations" / "1.unconfirmed").write_text("x")
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="1.unconfirmed: is not JSON.*torchpar confirm"):
        store.unconfirmed(store.generation(1))
