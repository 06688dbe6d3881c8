"""The commands that settle what waits for its confirmation, and what the one that lets it wait says."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from tests.unit.generations.fake_systemd import FakeSystemd
from tests.unit.generations.test_generation import content
from tests.unit.generations.test_transition import WAITS
from torchpar.cli import apply, confirm, rollback
from torchpar.contract.errors import BusyError, SystemdError
from torchpar.generations.apply import Applied
from torchpar.generations.store import Store
from torchpar.generations.transition import put_new_in_force
from torchpar.generations.unconfirmed import begin
from torchpar.host import analyze, systemd
from torchpar.host.clocks import read_clocks


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with three generations, of which the last is in force and waits for its confirmation; no systemd."""
    tmp_path.chmod(0o755)
    made = Store(tmp_path / "torchpar")
    with made.locked():
        for mark in ("1", "2", "3"):
            put_new_in_force(made, FakeSystemd(made), content(mark), WAITS if mark == "3" else None)
    for module in (confirm, rollback):
        monkeypatch.setattr(module, "Store", lambda: made)
        monkeypatch.setattr(module, "require_root", lambda command: None)
    monkeypatch.setattr(rollback, "LiveSystemd", lambda: FakeSystemd(made))
    monkeypatch.setattr(rollback, "restore", lambda store, number: rollback._put_in_force(store, None, number))
    monkeypatch.setattr(rollback, "refuse_other_host", lambda *_: None)
    monkeypatch.setattr(rollback, "running_among", lambda *_: ())
    monkeypatch.setattr(systemd, "require_systemd", lambda: None)
    return made


@pytest.fixture
def removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each time that leftovers would be removed, whether the lock was held. None of this host is."""
    times: list[bool] = []
    monkeypatch.setattr(analyze, "remove_leftovers", lambda: times.append(is_held(store)))
    return times


def is_held(store: Store) -> bool:
    """Whether another command would have to wait."""
    try:
        with Store(store.directory).locked():
            return False
    except BusyError:
        return True


@pytest.mark.parametrize("command", ["confirm", "rollback", "rollback 1"])
def test_the_way_back_is_stopped_before_another_command_can_begin_one(
    store: Store, removed: list[bool], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Which would lose its own."""
    stopped: list[tuple[str, bool, int]] = []
    monkeypatch.setattr(systemd, "stop", lambda unit: stopped.append((unit, is_held(store), len(store.waiting()))))
    monkeypatch.setattr(systemd, "running_services", tuple)
    if command == "confirm":
        assert confirm.confirm.callback
        confirm.confirm.callback(wait=False)
    else:
        assert rollback.rollback.callback
        number = 1 if command.endswith("1") else None
        rollback.rollback.callback(number, None, "never", wait=False, in_time=False)
    assert stopped == [("torchpar-way-back.service", True, 0)] and removed == [True]


def test_what_was_restarted_for_what_is_gone_is_restarted_again(
    store: Store, removed: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But what has ended by itself or by somebody, and what has failed too often can start again."""
    states = {"a": "active", "b": "failed", "c": "inactive", "d": "activating"}
    active = store.active()
    assert active
    with store.locked():
        store.amend(active, dataclasses.replace(WAITS, back=1, restarted=tuple(states)))
    asked: list[tuple[str, ...]] = []

    def systemctl(*arguments: str) -> str:
        asked.append(arguments)
        shown = (f"Id={unit}\nActiveState={state}" for unit, state in states.items())
        return "\n\n".join(shown) if arguments[0] == "show" else ""

    monkeypatch.setattr(systemd, "_systemctl", systemctl)
    monkeypatch.setattr(rollback, "find_outdated", lambda *_, **__: ("a", "e"))
    assert rollback.rollback.callback
    rollback.rollback.callback(None, None, "if-changed", wait=False, in_time=False)
    assert [words for words in asked if words[0] in ("reset-failed", "restart")] == [
        ("reset-failed", "--", "b"),
        ("restart", "a", "b", "d"),
    ]
    said = capsys.readouterr().out
    assert "generation 1 is in force" in said and "a: restarted" in said and "e: restarted" in said
    assert "old values" not in said


@pytest.mark.parametrize(("choice", "line"), [("if-changed", "e: restarted"), ("never", "e runs with its old values")])
def test_a_service_that_does_not_start_again_keeps_the_rest_from_nothing(
    store: Store,
    removed: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    choice: str,
    line: str,
) -> None:
    """It is said at the end."""
    active = store.active()
    assert active
    with store.locked():
        store.amend(active, dataclasses.replace(WAITS, back=1, restarted=("a",)))
    asked: list[str] = []

    def systemctl(*arguments: str) -> str:
        asked.append(arguments[0])
        if arguments[0] == "restart":
            raise SystemdError("a has failed")
        return "Id=a\nActiveState=active" if arguments[0] == "show" else ""

    monkeypatch.setattr(systemd, "_systemctl", systemctl)
    monkeypatch.setattr(rollback, "find_outdated", lambda *_, **__: ("a", "e"))
    assert rollback.rollback.callback
    with pytest.raises(SystemdError, match="a has failed\ngeneration 1 is in force"):
        rollback.rollback.callback(None, None, choice, wait=False, in_time=False)
    assert "stop" in asked and line in capsys.readouterr().out


def test_a_command_that_is_to_wait_goes_on_once_the_other_is_done(
    store: Store, removed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And fails at once otherwise, having done nothing."""
    monkeypatch.setattr(systemd, "stop", lambda unit: None)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.locked():
            held.set()
            done.wait(300)

    # Daemons: whatever fails here must not keep pytest from its end.
    other = threading.Thread(target=hold, daemon=True)
    other.start()
    assert held.wait(300)
    assert confirm.confirm.callback
    with pytest.raises(BusyError):
        confirm.confirm.callback(wait=False)
    assert store.waiting()
    waiting = threading.Thread(target=confirm.confirm.callback, kwargs={"wait": True}, daemon=True)
    waiting.start()
    assert store.waiting()
    done.set()
    other.join(300)
    waiting.join(300)
    assert not store.waiting() and removed == [True]


def test_apply_says_what_waits_whether_or_not_a_unit_differs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """For a person and a program, and also what an apply before it left waiting."""
    with store.locked():
        generation = put_new_in_force(store, FakeSystemd(store), content("4"), begin(3, 600, read_clocks())).generation
    waits = apply._what_waits(store, generation)
    assert waits and waits["back"] == 3 and 0 < waits["seconds_left"] <= 600
    apply._echo_what_waits(waits, asked=False)
    line = f"generation {waits['back']} comes back in {waits['seconds_left']} s unless you run: torchpar confirm\n"
    assert capsys.readouterr().out == line
    assert apply._report(Applied(generation, (), (), (), ()), waits)["unconfirmed"] == waits
    store.settle(generation)
    assert apply._what_waits(store, generation) is None
    apply._echo_what_waits(None, asked=True)
    assert "is not taken back" in capsys.readouterr().out
    apply._echo_what_waits(None, asked=False)
    assert capsys.readouterr().out == ""
