"""Services that cannot be placed as planned, on a host whose CPUs go and come; what is asked of systemd is noted."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hosts import make_host
from tests.unit.verify.fake_host import FakeHost, make_fake_host
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import SystemdError
from torchpar.contract.fallback import Fallback, Fallen, make_fallback_json, parse_fallback
from torchpar.contract.given import Given, GivenRank, kept_folder, make_given_json
from torchpar.contract.paths import FALLBACK
from torchpar.daemon.ladder import RECOMPILE, Doors, Failed, Ladder, Seen, take_step
from torchpar.facts.running import RunningUnit
from torchpar.host.affinity import UnitMove
from torchpar.host.in_force import read_fallback, read_without
from torchpar.host.sysfs import Tree

A, B = "torchpar-train@a.service", "torchpar-train@b.service"
ALL, LESS, LEAST = ({"cpus_online": cpus, "nodes_online": "0"} for cpus in ("0-3", "0-2", "0-1"))
TEXT = "[Host]\nReserveCores=0\n{}[Train a]\nScript=/a.py\nEnabled=yes\n"
ENDED = {"ActiveState": "failed", "Result": "exit-code", "ExecMainPID": 1, "ExecMainCode": 1, "ExecStartPre": []}


def failed(invocation: str, status: int | None = 215, *, is_recent: bool = True) -> Failed:
    return Failed(A, invocation, "its CPUs cannot be set (CPU affinity)", status, is_recent)


def test_nothing_is_done_where_nothing_has_failed() -> None:
    """Nor where the host is another one, unless that is to be followed: then once."""
    assert take_step(None, Seen(1, ALL, ALL)).fallback is None
    assert not take_step(None, Seen(1, ALL, LESS)).recompile
    step = take_step(None, Seen(1, ALL, LESS, follow=True))
    assert (step.recompile, step.start) == (True, ())
    assert step.told == (("", "this host has CPUs 0-2 now: its services are placed anew"),)
    again = take_step(step.fallback, Seen(1, ALL, LESS, follow=True))
    assert not again.recompile and again.fallback == step.fallback and not again.told, "it could not be made"
    assert take_step(step.fallback, Seen(2, LESS, LESS, follow=True)).fallback is None


@pytest.mark.parametrize("status", [215, 242])
def test_one_that_cannot_be_placed_is_started_with_a_new_placement_then_without_it_and_no_more(status: int) -> None:
    first = take_step(None, Seen(1, ALL, LESS, (failed("one", status),)))
    assert (first.recompile, first.start) == (True, (A,)) and first.fallback and not first.fallback.without
    assert "with a placement for this host as it is" in first.told[0][1]
    # It is still in that state until the placement is made.
    waits = take_step(first.fallback, Seen(1, ALL, LESS, (failed("one", status),)))
    assert (waits.recompile, waits.start, waits.fallback) == (False, (), first.fallback)
    second = take_step(first.fallback, Seen(2, LESS, LESS, (failed("two", status),)))
    assert (second.recompile, second.start) == (True, (A,))
    assert second.fallback and second.fallback.without == {A: status}
    third = take_step(second.fallback, Seen(3, LESS, LESS, (failed("three", status),)))
    assert (third.recompile, third.start, third.told) == (False, (), ())


def test_what_fails_for_another_reason_is_not_started() -> None:
    assert take_step(None, Seen(1, ALL, ALL, (failed("one", None),))).start == ()


def test_when_the_hardware_is_back_so_is_the_placement_and_what_did_not_run() -> None:
    """And a further change is followed, with new tries."""
    first = take_step(None, Seen(1, ALL, LESS, (failed("one"),)))
    further = take_step(first.fallback, Seen(2, LESS, LEAST, (failed("two"),)))
    assert (further.recompile, further.start) == (True, (A,))
    assert further.fallback and further.fallback.before == ALL and not further.fallback.without
    back = take_step(further.fallback, Seen(3, LEAST, ALL, (failed("three", is_recent=False),)))
    assert (back.recompile, back.start) == (True, (A,))
    assert take_step(back.fallback, Seen(4, ALL, ALL)).fallback is None
    runs = take_step(further.fallback, Seen(3, LEAST, ALL))
    assert (runs.recompile, runs.start) == (True, ())
    ran = take_step(further.fallback, Seen(3, LEAST, ALL, (failed("three", None),)))
    assert (ran.recompile, ran.start) == (True, ()), "it has run since, and failed for a reason of its own"


def test_the_file_is_read_as_it_was_written_and_nothing_else_is() -> None:
    fallback = Fallback(ALL, LESS, 3, (Fallen(A, 215, "one", 2),))
    text = make_fallback_json(fallback).encode()
    assert parse_fallback(text) == fallback and fallback.without == {A: 215}
    for other in (b"", b"{}", text.replace(b'"version": 1', b'"version": 2'), text[:-3], b"[" * 10**5):
        assert parse_fallback(other) is None


def test_what_a_plan_is_to_do_without_is_read_below_the_root(tmp_path: Path) -> None:
    """Nothing before a service has failed twice, nor of a file that torchpard has not written."""
    file = tmp_path / FALLBACK.lstrip("/")
    file.parent.mkdir(parents=True)
    for tries, without in ((1, {}), (2, {A: 242})):
        file.write_text(make_fallback_json(Fallback(ALL, ALL, 1, (Fallen(A, 242, "one", tries),))))
        assert read_without(Tree(tmp_path)) == without
    file.write_text("{}")
    assert read_without(Tree(tmp_path)) == {}


def test_what_is_kept_outlives_torchpard_and_no_boot() -> None:
    """systemd removes RuntimeDirectory= when torchpard is stopped; it may write nowhere else but where it says so."""
    folder, systemd = Path(FALLBACK).parent, Path(__file__).parents[3] / "systemd"
    unit = (systemd / "torchpard.service").read_text().splitlines()
    assert f"/run/{folder.name}" == str(folder) and f"RuntimeDirectory={folder.name}" not in unit
    assert f"ReadWritePaths=-{folder}" in unit
    made = (systemd / "torchpar.tmpfiles").read_text().splitlines()
    assert ["d", str(folder), "0755", "root", "root", "-"] in [line.split() for line in made]


class Climber:
    """A ladder on such a host, what it asks of systemd, moves and tells."""

    def __init__(self, folder: Path, hotplug: str = "") -> None:
        self.host: FakeHost = make_fake_host(folder)
        self.host.text = TEXT.format(hotplug)
        self.host.apply()
        self.asked: list[list[str]] = []
        self.moves: list[UnitMove] = []
        self.failed: tuple[str, ...] = ()
        self.told: list[str] = []
        self.refuses: BaseException | None = None
        self.unmovable = ""
        self.path, self.given = folder / "fallback", folder / "given"
        systemd: Any = self.host.systemd
        systemd.failed_services = lambda: self.failed
        systemd.start_without_waiting = self.start
        doors = Doors(lambda: self.host.manifest, lambda: self.host.facts, self.read, self.move)
        tell = lambda _, line, fields: self.told.append(line)  # noqa: E731
        paths = {"path": str(self.path), "given": str(self.given)}
        self.ladder = Ladder(self.host.store, systemd, doors, tell, **paths)

    def read(self, *arguments: Any, **options: Any) -> RunningUnit:
        online = CpuSet.parse(self.host.manifest["cpus_online"])
        return dataclasses.replace(self.host.read_running_unit(*arguments, **options), online_cpus=online)

    def move(self, move: UnitMove, seconds: float) -> int:
        if move.unit == self.unmovable:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        self.moves.append(move)
        return 1

    def start(self, units: Collection[str]) -> None:
        if self.refuses:
            raise self.refuses
        self.asked.append(list(units))

    def fail(self, status: int = 215, invocation: int = 1) -> None:
        self.failed = (A,)
        self.host.systemd.properties[A] = {**ENDED, "ExecMainStatus": status, "InvocationID": [invocation]}

    def be_busy(self, *, busy: bool) -> None:
        """Another torchpar holds the store's lock while a generation is asked for."""
        self.host.systemd.properties[RECOMPILE] = {**ENDED, "ExecMainStatus": 75} if busy else {}

    def look(self) -> None:
        lines: list[bytes] = []
        self.ladder.look(lines.append)
        self.ladder.take(lines)

    def lose_a_cpu(self) -> None:
        self.host.manifest = LESS
        gone = make_host(cores_per_complex=3)
        self.host.facts = dataclasses.replace(gone, hostname=self.host.facts.hostname)

    def regain_it(self) -> None:
        self.host.manifest, self.host.facts = ALL, make_host()

    def sit_on(self, *lists: str) -> None:
        (process,) = self.host.processes[A]
        threads = {number: CpuSet.parse(cpus) for number, cpus in enumerate(lists)}
        self.host.processes[A] = (dataclasses.replace(process, threads=threads),)


@pytest.fixture
def climber(tmp_path: Path) -> Climber:
    return Climber(tmp_path)


def test_a_failed_start_is_answered_by_a_new_placement_and_another_start(climber: Climber) -> None:
    climber.lose_a_cpu()
    climber.fail()
    climber.look()
    climber.look()
    assert climber.asked == [[RECOMPILE, A]]
    assert climber.told == [
        f"{A} could not start: its CPUs cannot be set (CPU affinity); it is started again with a placement for this"
        " host as it is"
    ]
    fallback = read_fallback(str(climber.path))
    assert fallback and (fallback.before, fallback.host) == (ALL, LESS)


def test_one_that_failed_long_ago_stays_where_it_is(climber: Climber) -> None:
    climber.fail()
    climber.host.systemd.properties[A]["InactiveEnterTimestampMonotonic"] = 1
    climber.look()
    assert climber.asked == []


def test_however_long_ago_it_failed_it_is_started_when_the_hardware_is_back(climber: Climber) -> None:
    climber.lose_a_cpu()
    fallback = Fallback(ALL, LESS, 1, (Fallen(A, 215, "01", 2),))
    climber.path.write_text(make_fallback_json(fallback))
    climber.fail()
    climber.host.systemd.properties[A]["InactiveEnterTimestampMonotonic"] = 1
    climber.look()
    climber.regain_it()
    climber.look()
    assert climber.asked == [[RECOMPILE, A]]


def test_a_start_that_is_asked_for_is_not_asked_for_again(climber: Climber) -> None:
    """It waits for the new placement, and is in its failed state until then."""
    climber.fail()
    climber.host.systemd.properties[A]["Job"] = [77, "/org/freedesktop/systemd1/job/77"]
    climber.look()
    assert climber.asked == []


@pytest.mark.parametrize("reason", [SystemdError("systemd refuses"), KeyboardInterrupt()])
def test_a_start_that_was_noted_and_not_asked_for_is_asked_for_once(climber: Climber, reason: BaseException) -> None:
    """As systemctl failed, which is told once, or torchpard was killed."""
    climber.lose_a_cpu()
    climber.fail()
    climber.refuses = reason
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            climber.look()
    refused = "services that could not be placed are not started: systemd refuses"
    assert climber.told == ([refused] if isinstance(reason, SystemdError) else [])
    climber.refuses = None
    climber.look()
    climber.look()
    assert climber.asked == [[RECOMPILE, A]]
    assert climber.told[-1].endswith("it is started again with a placement for this host as it is")
    fallback = read_fallback(str(climber.path))
    assert fallback and fallback.units == (Fallen(A, 215, "01", 1),)


def test_a_way_back_that_was_noted_and_not_asked_for_is_asked_for(climber: Climber) -> None:
    """Where a generation for this host is there already, and nothing else is left to do."""
    climber.path.write_text(make_fallback_json(Fallback(ALL, LESS, 1, (Fallen(A, 215, "01", 2),))))
    climber.fail()
    climber.refuses = SystemdError("systemd refuses")
    climber.look()
    climber.refuses = None
    climber.look()
    assert climber.asked == [[RECOMPILE, A]] and not climber.path.exists()


def test_a_placement_that_another_torchpar_kept_out_is_asked_for_until_it_is_there(climber: Climber) -> None:
    """A start that came without it is no try."""
    climber.lose_a_cpu()
    climber.fail()
    climber.look()
    for _ in range(2):
        climber.be_busy(busy=True)
        climber.fail(invocation=2)
        climber.look()
    climber.be_busy(busy=False)
    climber.host.apply()
    climber.look()
    climber.look()
    assert climber.asked == [[RECOMPILE, A], [RECOMPILE], [RECOMPILE], [RECOMPILE, A]]
    fallback = read_fallback(str(climber.path))
    assert fallback and not fallback.without


def test_a_host_that_is_followed_is_so_when_another_torchpar_has_done_its_work(tmp_path: Path) -> None:
    climber = Climber(tmp_path, "Hotplug=follow\n")
    climber.lose_a_cpu()
    climber.look()
    climber.be_busy(busy=True)
    climber.look()
    climber.be_busy(busy=False)
    climber.look()
    assert climber.asked == [[RECOMPILE], [RECOMPILE]]


def test_what_is_masked_is_not_started(climber: Climber) -> None:
    """systemd would refuse each time."""
    climber.fail()
    climber.host.systemd.properties[A]["LoadState"] = "masked"
    climber.look()
    assert climber.asked == []


def test_a_change_of_the_host_is_followed_if_the_conf_in_force_says_so(tmp_path: Path) -> None:
    climber = Climber(tmp_path, "Hotplug=follow\n")
    climber.look()
    assert climber.asked == []
    climber.lose_a_cpu()
    climber.look()
    climber.look()
    assert climber.asked == [[RECOMPILE]]


def test_threads_that_the_kernel_has_moved_go_back_and_others_stay(climber: Climber) -> None:
    climber.host.start(A)
    climber.look()
    assert climber.moves == []
    climber.sit_on("0-3", "7", "1")
    climber.look()
    assert climber.moves == []  # a person's doing
    climber.ladder.host_changed = True
    climber.look()
    climber.look()
    (move,) = climber.moves
    assert move.ranks[0].known == {CpuSet([7])} and str(move.ranks[0].to) == "0-3"


def test_one_that_is_to_stay_goes_on_with_the_plan_that_it_was_started_with(climber: Climber) -> None:
    """A newer one is for its next start."""
    climber.host.start(A)
    ranks = (GivenRank(CpuSet.parse("0-1"), 2),)
    kept = Path(kept_folder(str(climber.given)))
    kept.mkdir()
    (kept / A).write_text(make_given_json(Given(A, "now", ranks, ranks, 0.0)))
    climber.sit_on("0-1")
    climber.look()
    assert climber.moves == []


def test_one_that_runs_is_moved_to_the_plan_for_another_host_and_back(
    climber: Climber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is noted anew by the arbiter, as it has other CPUs than it was started with."""
    climber.host.start(A)
    climber.host.systemd.properties[A] = {"MainPID": 1000, "ControlGroup": f"/{A}"}
    fallback = Fallback(ALL, LESS, 1, (Fallen(A, 215, "one", 1),))
    climber.path.write_text(make_fallback_json(fallback))
    climber.lose_a_cpu()
    climber.host.apply()
    climber.sit_on("0-3")
    climber.look()
    (move,) = climber.moves
    assert (str(move.ranks[0].to), str(move.allowed)) == ("0-2", "0-2")

    climber.moves.clear()
    climber.sit_on("0-2", "0")
    ranks = (GivenRank(CpuSet.parse("0-2"), 3),)
    kept = Path(kept_folder(str(climber.given)))
    kept.mkdir()
    (kept / A).write_text(make_given_json(Given(A, "now", ranks, ranks, 0.0)))
    unlink = os.unlink

    def unlink_after_the_arbiter(path: str) -> None:
        unlink(path)
        if path == str(kept / A):
            unlink(path)

    monkeypatch.setattr(os, "unlink", unlink_after_the_arbiter)
    climber.regain_it()
    climber.look()
    assert climber.asked == [[RECOMPILE]] and not climber.moves
    assert not any("cannot be moved" in line for line in climber.told)
    climber.host.apply()
    climber.look()
    (move,) = climber.moves
    assert move.ranks[0].known == {CpuSet.parse("0-2")} and str(move.ranks[0].to) == "0-3"
    assert not (kept / A).exists() and not climber.path.exists()


def test_a_service_that_has_left_the_conf_keeps_nothing(climber: Climber) -> None:
    """One that is left out as it does not fit this host is still declared, and goes back with it."""
    fallback = Fallback(ALL, ALL, 1, (Fallen(B, 215, "01", 1),))
    climber.path.write_text(make_fallback_json(fallback))
    climber.look()
    assert not climber.path.exists()

    climber.host.text = TEXT.format("") + "[Train b]\nScript=/b.py\nEnabled=yes\nCPUs=2-3\n"
    climber.lose_a_cpu()
    compiled = climber.host.compile_as_applied()
    assert B not in {service.unit for service in compiled.services()}
    with climber.host.store.locked():
        climber.host.store.activate(climber.host.store.write(compiled))
    climber.path.write_text(make_fallback_json(dataclasses.replace(fallback, host=LESS)))
    climber.look()
    kept = read_fallback(str(climber.path))
    assert kept and [one.unit for one in kept.units] == [B]


def test_a_store_or_systemd_that_does_not_answer_is_for_the_next_time(climber: Climber) -> None:
    climber.fail()
    climber.host.systemd.refuses = "list"
    climber.look()
    assert climber.asked == [] and climber.told == []


def test_a_full_disk_is_told(climber: Climber) -> None:
    climber.fail()
    climber.path.mkdir()
    climber.look()
    assert climber.asked == [] and "are not started" in climber.told[0]


def test_one_that_cannot_be_moved_keeps_no_other_from_it_and_is_told_of_once(climber: Climber) -> None:
    climber.host.text = f"{TEXT.format('')}[Train b]\nScript=/b.py\nEnabled=yes\n"
    climber.host.apply()
    for unit in (A, B):
        climber.host.start(unit)
        (process,) = climber.host.processes[unit]
        climber.host.processes[unit] = (dataclasses.replace(process, threads={1: CpuSet([7])}),)
    climber.unmovable = A
    climber.ladder.host_changed = True
    climber.look()
    climber.look()
    assert [move.unit for move in climber.moves] == [B, B]
    why = "threads that are elsewhere than planned cannot be moved: [Errno 1] Operation not permitted"
    assert climber.told == [f"{A}: {why}"]
    climber.unmovable = ""
    climber.look()
    climber.unmovable = A
    climber.ladder.host_changed = True
    climber.look()
    assert climber.told == [f"{A}: {why}"] * 2


def test_what_a_look_tells_is_json(climber: Climber) -> None:
    lines: list[bytes] = []
    climber.ladder.look(lines.append)
    assert json.loads(lines[0]) == {"told": [], "problems": []}
