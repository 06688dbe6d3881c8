"""What an apply does with what was compiled: put in force or held, what is warned of, and who is restarted."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

from tests.unit.generations.fake_systemd import FakeSystemd, mark_of
from tests.unit.generations.test_generation import content
from torchpar.contract.errors import ConfigError, SystemdError, TorchparError
from torchpar.generations.apply import Applied, Request, Restart, apply
from torchpar.generations.compile import Compiled
from torchpar.generations.store import Store
from torchpar.plan.plan import Plan

UNIT = "torchpar-train@a.service"


def make_door(store: Store, **door: Any) -> FakeSystemd:
    """A systemd in which the service runs."""
    return FakeSystemd(store, runs={UNIT: "before"}, **door)


@pytest.fixture
def store(tmp_path: Any) -> Store:
    """An empty store in a directory that only this user can write."""
    tmp_path.chmod(0o755)
    return Store(tmp_path / "torchpar")


def put(store: Store, door: FakeSystemd, mark: str, **request: Any) -> tuple[Applied, list[str]]:
    """Apply what differs by its mark; what was told, too."""
    told: list[str] = []
    compiled = Compiled(cast(Plan, None), content(mark), (f"of {mark}",))
    with store.locked():
        return apply(store, door, compiled, Request(**request), told.extend), told


def test_what_is_new_is_put_in_force_and_what_is_the_same_is_held(store: Store) -> None:
    """A second apply of the same makes no generation, and says no more of its units."""
    door = make_door(store, passes_over=("a line is passed over",))
    first, told = put(store, door, "one")
    assert told == ["of one", "a line is passed over"] == list(first.warnings)
    assert [(change.unit, change.what) for change in first.changes][0] == (UNIT, "added")
    again, told = put(store, door, "one")
    assert again.generation == first.generation and not again.changes and told == ["of one"]
    assert door.asked == ["units"] and door.holds == "one"


def test_what_a_guard_has_refused_is_forgotten_once_all_files_were_looked_at(store: Store) -> None:
    """Also where nothing else has changed. At boot a service is left out in whose files others have a hand."""
    guard = f"torchpar-guard@{UNIT}"
    door = make_door(store, properties={guard: {"ActiveState": "failed"}})
    put(store, door, "one", at_boot=True)
    assert door.unit_properties(guard)["ActiveState"] == "failed"
    put(store, door, "one")
    assert door.unit_properties(guard)["ActiveState"] == "inactive"


def test_what_systemd_refuses_changes_nothing(store: Store) -> None:
    """It is asked before anything is written."""
    first, _ = put(store, make_door(store), "one")
    with pytest.raises(ConfigError):
        put(store, make_door(store, refuses="units"), "two")
    assert store.active() == first.generation and len(store.history()) == 1
    # At boot it has passed that already.
    at_boot, _ = put(store, make_door(store, refuses="units"), "two", at_boot=True)
    assert mark_of(store.active()) == "two" and at_boot.generation == store.active()


def test_a_damaged_generation_is_replaced_by_the_same_and_said(store: Store) -> None:
    """Of what is in it nothing is taken for what is in force."""
    first, _ = put(store, make_door(store), "one")
    (first.generation.path / "units" / f"{UNIT}.d" / "20-torchpar.conf").write_text("[Service]\n")
    again, _ = put(store, make_door(store), "one")
    assert again.generation.number == 2 and mark_of(store.active()) == "one"


@pytest.mark.parametrize(
    ("restart", "idle", "restarted"),
    [
        (Restart.NEVER, True, ()),
        (Restart.IF_CHANGED, False, (UNIT,)),
        (Restart.WHEN_IDLE, True, (UNIT,)),
        (Restart.WHEN_IDLE, False, ()),
    ],
)
def test_who_runs_with_old_values_is_restarted_as_asked_or_named(
    store: Store, restart: Restart, idle: bool, restarted: tuple[str, ...]
) -> None:
    """A service that was added has no old ones."""
    put(store, make_door(store), "one")
    applied, _ = put(store, make_door(store, idle=idle), "two", restart=restart)
    assert applied.restarted == restarted
    assert applied.outdated == (() if restarted else (UNIT,))


def test_what_runs_with_older_settings_yet_is_restarted_too(store: Store) -> None:
    """Though this apply changes nothing; what does not run any more is neither restarted nor named."""
    put(store, make_door(store), "one")
    applied, _ = put(store, make_door(store), "one", outdated=(UNIT, "torchpar-train@gone.service"))
    assert (applied.changes, applied.outdated, applied.restarted) == ((), (UNIT,), ())
    applied, _ = put(store, make_door(store), "one", outdated=(UNIT,), restart=Restart.IF_CHANGED)
    assert (applied.outdated, applied.restarted) == ((), (UNIT,))


@pytest.mark.parametrize(("refuses", "said"), [("list", "no service was restarted"), ("restart", "old values")])
def test_what_fails_after_the_generation_is_in_force_says_that_it_is(store: Store, refuses: str, said: str) -> None:
    """And who was not restarted."""
    put(store, make_door(store), "one")
    with pytest.raises(SystemdError, match="generation 2 is in force") as raised:
        put(store, make_door(store, refuses=refuses), "two", restart=Restart.IF_CHANGED)
    assert said in str(raised.value) and mark_of(store.active()) == "two"


def test_what_is_restarted_is_kept_with_the_generation_that_may_go(store: Store) -> None:
    """Of all applies while it waits; the time that is left stays."""
    other = "torchpar-train@other.service"
    put(store, make_door(store), "one")
    door = make_door(store)
    door.runs[other] = "one"
    second, _ = put(store, door, "two", confirm_within=60, restart=Restart.IF_CHANGED)
    waits = store.unconfirmed(second.generation)
    assert waits and (waits.back, waits.seconds, waits.restarted) == (1, 60, (UNIT,))
    put(store, door, "two", outdated=(other,), restart=Restart.IF_CHANGED)
    assert store.unconfirmed(second.generation) == dataclasses.replace(waits, restarted=tuple(sorted((UNIT, other))))


def test_what_fails_says_too_what_comes_back(store: Store) -> None:
    """Whoever sees a service fail has not much time."""
    put(store, make_door(store), "one")
    with pytest.raises(SystemdError, match="generation 2 is in force; generation 1 comes back in 60 s unless you run"):
        put(store, make_door(store, refuses="restart"), "two", restart=Restart.IF_CHANGED, confirm_within=60)


def test_a_generation_that_waits_is_confirmed_before_another_one(store: Store) -> None:
    """At boot what waits is carried on."""
    with pytest.raises(TorchparError, match="no generation to go back to"):
        put(store, make_door(store), "one", confirm_within=60)
    put(store, make_door(store), "one")
    door = make_door(store)
    second, _ = put(store, door, "two", confirm_within=60)
    waits = store.unconfirmed(second.generation)
    assert waits and (waits.back, waits.seconds) == (1, 60) and door.started
    with pytest.raises(TorchparError, match="still waits for its confirmation.*nothing has changed"):
        put(store, make_door(store), "three")
    at_boot, _ = put(store, make_door(store), "three", at_boot=True)
    carried = store.unconfirmed(at_boot.generation)
    assert carried and (carried.back, carried.seconds) == (1, 60)
