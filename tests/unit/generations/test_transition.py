"""Transitions of the store with an error or a kill at each call that changes the file system: whole, and told truly.

What is counted and made to fail are the functions of os, in this process; on a booted machine it is the system calls.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.generations.fake_systemd import FakeSystemd, active_mark, mark_of
from tests.unit.generations.test_generation import content
from torchpar.contract.errors import StoreError, SystemdError, TorchparError
from torchpar.generations.drift import find_drift
from torchpar.generations.enforce import is_in_force, read_active
from torchpar.generations.generation import Content, Generation
from torchpar.generations.restart import restart
from torchpar.generations.store import Store
from torchpar.generations.transition import confirm, hold, prune, put_new_in_force, put_old_in_force
from torchpar.generations.unconfirmed import Unconfirmed
from torchpar.host.files import exchange

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT)
CHANGING = ("write", "fsync", "rename", "symlink", "mkdir", "unlink", "rmdir", "fchmod", "fchown", "open")

WAITS = Unconfirmed(back=2, seconds=60, boot_id="b", monotonic=0.0, time_of_day=0.0)


class Killed(BaseException):
    """Stands for SIGKILL: what catches exceptions does not catch it, and nothing changes after it."""


class Disk:
    """The functions of os that change a file system, of which the one of a number fails, or it and all after it.

    `calls` are those since it was last told what fails, and `done` those before that.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.done: list[str] = []
        self._error: int | None = None
        self._numbers: range = range(0)
        for name in CHANGING:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def fail(self, error: int | None, numbers: range) -> None:
        """Let the calls of these numbers, from 0, fail from now on; without an error they are where it was killed."""
        self.done, self.calls, self._error, self._numbers = self.calls, [], error, numbers

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            self.calls.append(name)
            if len(self.calls) - 1 in self._numbers:
                if self._error is None:
                    raise Killed
                raise OSError(self._error, os.strerror(self._error))
            # Nothing here is to outlive a loss of power.
            return None if name == "fsync" else real(*arguments, **options)

        return call


def apply(store: Store, systemd: FakeSystemd, what: Content, unconfirmed: Unconfirmed | None = None) -> Generation:
    """What the command does once it knows what to put in force."""
    active = read_active(store)
    if active and active[1] == what:
        done = hold(store, systemd, active[0], loaded=True)
    else:
        done = put_new_in_force(store, systemd, what, unconfirmed)
    told = prune(store, keep=2)
    assert all("no longer kept are still there" in warning for warning in told)
    return done.generation


@dataclass(frozen=True)
class Case:
    """What is done, to a store with so many generations in force one after the other, the last of which may be damaged
    then, and what is in force after it."""

    name: str
    generations: int
    do: Callable[[Store, FakeSystemd], object]
    new: str
    waits: Unconfirmed | None = None
    refuses: str = ""
    damage: Callable[[Path], object] | None = None


def roll_back(store: Store, systemd: FakeSystemd) -> None:
    put_old_in_force(store, systemd, store.generation(1))


def apply_new(store: Store, systemd: FakeSystemd) -> None:
    apply(store, systemd, content("new"))


def apply_for_a_time(store: Store, systemd: FakeSystemd) -> None:
    apply(store, systemd, content("new"), WAITS)


def apply_and_restart(store: Store, systemd: FakeSystemd) -> None:
    with is_in_force(apply(store, systemd, content("new"))):
        restart(systemd, ("a", "b", "c"))


def change(generation: Path) -> None:
    (generation / "plan.json").write_text("{}", encoding="utf-8")


CASES = (
    Case("first apply", 0, apply_new, "new"),
    Case("apply", 2, apply_new, "new"),
    Case("apply of the same", 2, lambda store, systemd: apply(store, systemd, content("2")), "2"),
    Case("apply, with one too many", 3, apply_new, "new"),
    Case("apply --confirm-within", 2, apply_for_a_time, "new"),
    Case("confirm", 2, lambda store, systemd: confirm(store), "2", waits=WAITS),
    Case("rollback", 2, roll_back, "1"),
    Case("rollback of what waits", 2, roll_back, "1", waits=WAITS),
    Case("first apply, no reload", 0, apply_new, "", refuses="reload"),
    Case("apply, not taken", 2, apply_new, "", refuses="new"),
    Case("first apply, not taken", 0, apply_new, "", refuses="new"),
    Case("rollback, no reload", 2, roll_back, "", refuses="reload"),
    Case("rollback, not taken", 2, roll_back, "", refuses="1"),
    Case("apply --restart, refused", 2, apply_and_restart, "new", refuses="restart"),
    Case("apply over a damaged one", 2, apply_new, "new", damage=change),
    Case("apply over one that is gone", 2, apply_new, "new", damage=shutil.rmtree),
    Case("apply over a damaged one, not taken", 2, apply_new, "", refuses="new", damage=change),
    Case("boot over a damaged one that waits", 2, apply_for_a_time, "new", waits=WAITS, damage=change),
)


class Host:
    """A store in a directory of its own, on a disk that can fail, and a systemd that holds what is in force."""

    def __init__(self, directory: Path, disk: Disk, case: Case) -> None:
        disk.fail(None, range(0))
        self.store, self.disk, self.case = Store(directory / "torchpar"), disk, case
        self.systemd = FakeSystemd(self.store, runs=dict.fromkeys("abc", ""))
        with self.store.locked():
            for number in range(1, case.generations + 1):
                waits = case.waits if number == case.generations else None
                put_new_in_force(self.store, self.systemd, content(str(number)), waits)
        self.damaged = case.generations if case.damage else 0
        if case.damage:
            case.damage(self.store.generations / str(self.damaged))
        self.old, self.held = active_mark(self.store), self.systemd.holds
        self.systemd.refuses = case.refuses

    def do(self, error: int | None = None, numbers: range = range(0)) -> str:
        """Do what the case says, and return the error's words, "killed", or ""."""
        self.disk.fail(error, numbers)
        try:
            with self.store.locked():
                self.case.do(self.store, self.systemd)
        except Killed:
            return "killed"
        except TorchparError as told:
            return str(told)
        finally:
            self.disk.fail(None, range(0))
        return ""


def check(host: Host, said: str) -> str:
    """Check all that must be true after whatever happened, and return what is in force."""
    active = active_mark(host.store)
    assert active in {host.old, host.case.new or host.old, "new" if host.case.refuses else active, "1"}
    for generation in host.store.history():
        if generation.number != host.damaged:
            generation.read()
    if host.systemd.holds != active:
        # The next daemon-reload of somebody else.
        assert host.systemd.holds == host.held or host.case.refuses
    number = generation_number(host.store)
    left = "these do not run: c; see: systemctl status c\nthese were not restarted and run with their old values: b; "
    left += f"again: systemctl restart b\ngeneration {number} is in force"
    if said in ("", "killed"):
        assert said or (active == host.case.new == host.systemd.holds)
        return active
    claims = {
        "nothing has changed": active == host.old and host.systemd.holds == host.held,
        left: active == host.systemd.holds == host.systemd.runs["a"] != host.systemd.runs["b"],
        f"generation {number} is in force, but after a loss of power": active == host.systemd.holds,
        f"generation {number} is in force, as before": active == host.old == host.systemd.holds,
        "no generation is in force, as before": active == host.old == host.systemd.holds == "nothing",
        f"generation {number} stays active in the store": active != host.old,
        f"generation {number} is active in the store again": active == host.old,
        "no generation is active in the store again": active == host.old == "nothing",
        f"generation {number} is active in the store, as it was": active == host.old,
        f"generation {number} is not confirmed": host.store.waiting() != () and active == host.old,
        f"generation {number} is confirmed, but": not host.store.waiting() and active == host.old,
    }
    made = [claim for claim in claims if claim in said]
    assert len(made) == 1 and claims[made[0]], (said, made, active, host.systemd.holds)
    return active


def generation_number(store: Store) -> int:
    with contextlib.suppress(StoreError):
        if active := store.active():
            return active.number
    return 0


def check_next(host: Host, before: str) -> None:
    """The next command does it, whatever the last left, and nothing is left over. `before` is what was in force for
    sure, if that is known."""
    host.systemd.refuses = ""
    with host.store.locked():
        active = read_active(host.store)
        if active and host.store.unconfirmed(active[0]):
            confirm(host.store)
        apply(host.store, host.systemd, content("next"))
    assert host.systemd.holds == active_mark(host.store) == "next"
    names = {*os.listdir(host.store.directory), *os.listdir(host.store.generations)}
    numbers = {str(generation.number) for generation in host.store.history()}
    assert names == {".lock", "active", "generations", *numbers} and find_places(host.store) == ()
    # One that was never in force is not kept: a rollback would lead there.
    whole = [generation for generation in host.store.history() if generation.number != host.damaged]
    assert before in ("", "new") or "new" not in map(mark_of, whole)


def find_places(store: Store) -> tuple[str, ...]:
    """What drifted, but for units that the systemd of these tests has not read into its directory."""
    return find_drift(store, None)


def faults(calls: int) -> Iterator[tuple[int, int | None, bool]]:
    """A kill at each call, and an error at it: by turns one of four, at that call alone or from it on; ALL_FAULTS=1 has
    all eight."""
    for number in range(calls):
        yield number, None, True
        if os.environ.get("ALL_FAULTS"):
            yield from ((number, error, onwards) for error in ERRORS for onwards in (False, True))
        else:
            yield number, ERRORS[number // 2 % len(ERRORS)], number % 2 == 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    yield Disk(monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_with_a_fault_at_each_call_the_old_or_the_new_is_whole_and_told(
    case: Case, disk: Disk, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A kill and an error at each call: never something between, never a false word, and nothing left over by the next
    command."""
    tmp_path.chmod(0o755)
    outcomes: Counter[str] = Counter()
    serial = itertools.count()

    def fresh() -> Host:
        directory = tmp_path / str(next(serial))
        directory.mkdir(mode=0o755)
        return Host(directory, disk, case)

    host = fresh()
    said = host.do()
    calls = len(disk.done)
    assert bool(said) == bool(case.refuses), said
    assert check(host, said) == (case.new or host.old)
    check_next(host, case.new or host.old)
    for number, error, onwards in faults(calls):
        host = fresh()
        said = host.do(error, range(number, 1000) if onwards else range(number, number + 1))
        assert error is not None or said == "killed"
        active = check(host, said)
        outcomes["old" if active == host.old else "new"] += 1
        check_next(host, "" if case.refuses and said == "killed" else active)
    record_property("calls", calls)
    print(f"{case.name}: {calls} calls, {outcomes.total()} faults: {dict(outcomes)}")


@pytest.mark.parametrize("refuses", ["", "new"])
@pytest.mark.parametrize("is_only_copy", [False, True])
def test_a_folder_in_place_of_the_link_is_in_force_until_the_link_is(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_only_copy: bool, refuses: str
) -> None:
    """As a program that follows links copies the store. With a fault at each call what was in force comes back, and
    what waits goes on waiting."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr("torchpar.generations.store.exchange", disk.wrap("exchange", exchange))
    case = Case("apply", 2, apply_new, "new", None if is_only_copy else WAITS, refuses)

    def fresh(name: str) -> Host:
        (tmp_path / name).mkdir(mode=0o755)
        host = Host(tmp_path / name, disk, case)
        link, folder = host.store.link, host.store.generations / "2"
        link.unlink()
        shutil.copytree(folder, link, symlinks=True)
        if is_only_copy:
            shutil.rmtree(folder)
        return host

    fresh("whole").do()
    for number, error, onwards in faults(len(disk.done)):
        host = fresh(f"{number}-{error}-{onwards}")
        said = host.do(error, range(number, 1000) if onwards else range(number, number + 1))
        assert error is not None or said == "killed"
        link = host.store.link
        assert mark_of(Generation(0, link)) in ("2", "new")
        if link.is_symlink():
            check(host, said)
        else:
            assert said == "killed" or "nothing has changed" in said
        with host.store.locked():
            active = host.store.active()
            assert active and mark_of(active) in ("2", "new")
            assert is_only_copy or host.store.unconfirmed(active) or mark_of(active) == "new"
        check_next(host, "")


def test_a_file_system_that_cannot_exchange_says_what_to_do(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has what it had."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr("torchpar.generations.store.exchange", disk.wrap("exchange", exchange))
    host = Host(tmp_path, disk, CASES[1])
    host.store.link.unlink()
    shutil.copytree(host.store.generations / "2", host.store.link, symlinks=True)
    disk.fail(None, range(0))
    with host.store.locked():
        before = disk.calls.index("exchange")
    host.store.link.unlink()
    shutil.copytree(host.store.generations / "2", host.store.link, symlinks=True)
    assert f"mv {host.store.link} " in host.do(errno.EINVAL, range(before, before + 1))
    assert mark_of(Generation(0, host.store.link)) == "2" and not (host.store.directory / ".active.old").exists()


def test_what_waits_goes_on_waiting_where_the_link_leads_there_by_another_path(disk: Disk, tmp_path: Path) -> None:
    """By which it is not known that it is not in force."""
    tmp_path.chmod(0o755)
    host = Host(tmp_path, disk, Case("", 2, apply_new, "new", WAITS))
    host.store.link.unlink()
    host.store.link.symlink_to(host.store.generations / "2")
    with host.store.locked():
        assert host.store.waiting() == (WAITS,)
    host.store.link.unlink()
    with host.store.locked():
        assert host.store.waiting() == ()


def test_who_interrupts_it_after_the_flip_is_told_what_is_active(disk: Disk, tmp_path: Path) -> None:
    """Ctrl-C while systemd reads its units; the next apply goes on."""
    tmp_path.chmod(0o755)
    host = Host(tmp_path, disk, CASES[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.systemd, "reload", raise_interrupt)
        said = host.do()
    assert said.startswith("interrupted; generation 3 is active in the store") and said.endswith("torchpar apply")
    assert (mark_of(host.store.active()), host.systemd.holds) == ("new", "2")
    assert host.do() == "" and host.systemd.holds == "new"


@pytest.mark.parametrize(
    ("restarting", "asking", "told"),
    [
        ("interrupt", "", "interrupted; systemd goes on restarting {0}; see: systemctl list-jobs"),
        ("fail", "", "failed\nthese were not restarted and run with their old values: {0}; again: {1}"),
        ("fail", "fail", "failed\nwhether these were restarted is not known (failed): {0}; see: systemctl status {0}"),
    ],
)
def test_a_restart_that_ends_otherwise_is_told_with_what_is_in_force(
    disk: Disk, tmp_path: Path, restarting: str, asking: str, told: str
) -> None:
    """Ctrl-C, which does not keep systemd from going on, or a systemd that answers no more."""
    tmp_path.chmod(0o755)
    host = Host(tmp_path, disk, Case("", 2, apply_and_restart, "new"))
    answers = itertools.count()

    def restart_none(units: tuple[str, ...]) -> None:
        raise KeyboardInterrupt if restarting == "interrupt" else SystemdError("failed")

    def ask(units: tuple[str, ...]) -> dict[str, str]:
        if asking and next(answers):
            raise SystemdError("failed")
        return dict(host.systemd.runs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.systemd, "restart", restart_none)
        patch.setattr(host.systemd, "invocations", ask)
        assert host.do() == told.format("a b c", "systemctl restart a b c") + "\ngeneration 3 is in force"


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("call", ["reload", "check"])
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.new in ("new", "1") and not (case.damage or case.refuses)],
    ids=lambda case: case.name,
)
def test_a_bug_after_the_flip_goes_back_and_keeps_its_traceback(
    disk: Disk, tmp_path: Path, case: Case, call: str, again: bool
) -> None:
    """An answer of systemd that nobody has thought of; also where it comes again on the way back."""
    tmp_path.chmod(0o755)
    host = Host(tmp_path, disk, case)
    real, calls = getattr(host.systemd, call), itertools.count()

    def fail(*arguments: Any) -> Any:
        done = real(*arguments)
        if next(calls) == 0 or again:
            raise KeyError("ActiveState")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.systemd, call, fail)
        with pytest.raises(KeyError) as bug:
            host.do()
    (note,) = bug.value.__notes__
    check(host, note)
    assert mark_of(host.store.active()) == host.old == host.systemd.holds
    assert again == ("KeyError: 'ActiveState'" in note) or not case.generations
    check_next(host, host.old)


def raise_interrupt() -> None:
    raise KeyboardInterrupt
