"""torchpard over its life, on a host that is made up: it answers, notices what changes, and is held by nobody."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.contract.test_reports import FIRST
from tests.unit.daemon.test_status_socket import turn
from tests.unit.generations.fake_systemd import FakeSystemd
from tests.unit.verify.fake_host import INFER, TEXT, TRAIN, make_fake_host
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.messages import MESSAGE_IDS
from torchpar.contract.notify import Notifier
from torchpar.contract.reports import RankProgress
from torchpar.daemon.arbiter import Arbiter, Doors
from torchpar.daemon.changes import Changes
from torchpar.daemon.figures import Figures
from torchpar.daemon.look import Write
from torchpar.daemon.main import OLDER, Daemon, Parts, Sockets, run
from torchpar.daemon.status_socket import Users
from torchpar.daemon.throughput import Ledger
from torchpar.daemon.usage import Usage
from torchpar.daemon.watch import POLL_SECONDS, SMALL_LOOK_SECONDS, Watch
from torchpar.facts.running import RunningUnit
from torchpar.host.affinity import UnitMove
from torchpar.host.usage import Use

pytestmark = pytest.mark.subprocess

NOTHING = "nothing has been applied on this host yet; run: torchpar apply"
IN_FORCE_IS_OLDER = "the conf is newer than generation 1; see: torchpar diff, then: systemctl reload torchpard"
# For whatever is to come, of a host that does nothing for long.
PATIENCE = 120.0


def make_sockets(folder: Path) -> Sockets:
    return Sockets(*(str(folder / name) for name in ("root", "members")))


class FakeLadder:
    """Notes in a file how often it has looked, each time in a process that ends."""

    def __init__(self, looks: Path) -> None:
        self._looks = looks
        self.host_changed = False

    def look(self, write: Write) -> None:
        with self._looks.open("a") as file:
            file.write("look\n")

    def take(self, lines: Sequence[bytes]) -> None:
        """Nothing is told."""


class Life:
    """A daemon on such a host, its clock, what it tells, and how to ask it. Each look is a process that sees the host
    as it is when the look begins."""

    def __init__(self, folder: Path) -> None:
        self.host = make_fake_host(folder)
        self.told: list[str] = []
        self.fields: dict[str, dict[str, str]] = {}
        self.now = 1000.0
        self.uid = 0
        self._lock = folder / "held"
        self._holder = self._lock.open("w")
        self._sockets = make_sockets(folder)
        self._reloads = folder / "reloads"
        self._moves = folder / "moves"
        self.host.systemd.reload_without_waiting = self.reload  # type: ignore[method-assign]
        readers = dataclasses.replace(self.host.readers, read_running_unit=self.read_running_unit)
        self.progress: tuple[RankProgress, ...] = ()
        self.read: list[str] = []
        self.used: Use | None = None
        figures = Figures(Ledger(self.read_progress), Usage(lambda group: self.used), lambda unit: None)
        self.watch = Watch(self.host.store, self.host.systemd, readers, figures, self.tell)
        users = Users(lambda client: self.uid, lambda uid: True)
        doors = Doors(lambda: self.host.facts, self.move, lambda group: None)
        self.arbiter = Arbiter(self.host.store, self.host.systemd, doors, self.tell, folder=str(folder / "given"))
        self.cpus = "0-3"
        self.changes = Changes({str(folder / "etc"): "torchpar.conf"}, lambda: self.cpus)
        self._climbs = folder / "climbs"
        parts = Parts(self.watch, self.arbiter, FakeLadder(self._climbs), self.changes)
        self.daemon = Daemon(parts, Notifier(), self._sockets, users=users, clock=lambda: self.now)

    def move(self, move: UnitMove, seconds: float) -> int:
        """Each is made by a process that ends."""
        with self._moves.open("a") as file:
            file.write(f"{move.unit} {' '.join(str(rank.to) for rank in move.ranks)}\n")
        return 1

    def moves(self) -> list[str]:
        return self._moves.read_text().splitlines() if self._moves.exists() else []

    def climbs(self) -> int:
        """How often the ladder has looked."""
        turn(self.daemon.selector, lambda: self.daemon._ladders._look is None, PATIENCE)
        return len(self._climbs.read_text().splitlines())

    def hold(self) -> None:
        """Have whatever looks at a running service wait."""
        fcntl.flock(self._holder, fcntl.LOCK_EX)

    def end(self) -> None:
        """Let go of what was held, too."""
        self._holder.close()
        self.daemon.selector.close()

    def tell(self, priority: int, line: str, fields: Mapping[str, str]) -> None:
        self.told.append(line)
        self.fields[line] = dict(fields)

    def reload(self, unit: str) -> None:
        """It is asked for by a process that ends."""
        with self._reloads.open("a") as file:
            file.write(f"{unit}\n")
        FakeSystemd.reload_without_waiting(self.host.systemd, unit)

    def reloads(self) -> list[str]:
        return self._reloads.read_text().splitlines() if self._reloads.exists() else []

    def read_running_unit(self, *arguments: Any, **options: Any) -> RunningUnit:
        with self._lock.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return self.host.read_running_unit(*arguments, **options)

    def read_progress(self, unit: str, ranks: int) -> tuple[RankProgress, ...]:
        self.read.append(unit)
        return self.progress if unit == TRAIN else ()

    def ask(self, *, later: float = 0.0) -> dict[str, Any]:
        """What a client gets; `later`: the seconds that pass once it has asked."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self._sockets.members)
            client.setblocking(False)
            turn(self.daemon.selector, lambda: any(self.daemon._waiting()) or self.is_answered(client), PATIENCE)
            self.now += later
            data = bytearray()

            def has_all() -> bool:
                self.daemon.come_round()
                with contextlib.suppress(BlockingIOError):
                    while piece := client.recv(65536):
                        data.extend(piece)
                    return True
                return False

            turn(self.daemon.selector, has_all, PATIENCE)
        return dict(json.loads(data)) if data else {}

    @staticmethod
    def is_answered(client: socket.socket) -> bool:
        with contextlib.suppress(BlockingIOError):
            client.recv(1, socket.MSG_PEEK)
            return True
        return False


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    """A daemon that has just started on a host on which nothing was applied, asked by root."""
    made = Life(tmp_path)
    yield made
    made.end()


# ---- what it notices ----


@pytest.mark.parametrize("what", ["the conf", "the CPUs", "nothing"])
def test_what_it_hears_of_is_looked_at_soon_and_nothing_else_for_long(life: Life, tmp_path: Path, what: str) -> None:
    """So that a host on which nothing happens is not asked all the time."""
    (tmp_path / "etc").mkdir()
    life.changes.watch()
    life.host.apply()
    life.ask()
    for _ in range(2):
        life.watch.next_look = life.now + 2 * POLL_SECONDS
        life.now += POLL_SECONDS
        life.daemon.come_round()
        turn(life.daemon.selector, lambda: life.daemon._glances._look is None, PATIENCE)
    before = life.daemon._glances.number
    if what == "the conf":
        (tmp_path / "etc/torchpar.conf").write_text("")
        turn(life.daemon.selector, lambda: life.daemon._next_poll < life.now + 1, PATIENCE)
    elif what == "the CPUs":
        life.cpus = "0-1"
    life.now += SMALL_LOOK_SECONDS
    life.daemon.come_round()
    assert life.daemon._glances.number == before + (what != "nothing")


def test_what_cannot_be_placed_is_looked_at_when_the_host_has_changed_and_when_a_start_has_failed(life: Life) -> None:
    """Once the CPUs have stopped to come and go; and as long as something runs on less than it had."""
    life.host.apply()
    life.ask()
    before = life.climbs()
    assert before == 1, "at the start of torchpard"
    life.cpus = "0-1"
    life.now += SMALL_LOOK_SECONDS
    life.daemon.come_round()
    assert life.climbs() == before
    life.now += SMALL_LOOK_SECONDS
    life.daemon.come_round()
    assert life.climbs() == before + 1

    ended = {"ActiveState": "failed", "Result": "exit-code", "ExecMainPID": 1, "ExecMainCode": 1}
    life.host.systemd.properties[TRAIN] = {**ended, "ExecMainStatus": 215}
    life.host.systemd.runs["torchpar-train@other.service"] = "so that it has changed"
    life.ask()
    assert life.climbs() == before + 2


def test_one_start_costs_few_divisions(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is heard, twice afterwards, and once more when a glance sees it too."""
    divisions: list[float] = []
    monkeypatch.setattr(life.daemon._divisions, "want", lambda: divisions.append(life.now))
    monkeypatch.setattr(life.changes, "take", lambda: (True, False, frozenset()))
    began = life.now
    life.daemon._heard()
    monkeypatch.setattr(life.watch, "read_stamp", lambda lines: "another")
    for seconds in (0.4, 0.6, 0.7, 3.9, 4.1, 10):
        life.now = began + seconds
        life.daemon.come_round()
        if seconds == 0.6:
            life.daemon._glanced(1, [])
    assert divisions == [began, began + 0.6, began + 0.6, began + 4.1]


def test_an_owner_that_needs_its_cpus_is_heard_before_all_is_divided_anew(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []
    monkeypatch.setattr(life.daemon._backs, "want", lambda: wanted.append("back"))
    monkeypatch.setattr(life.daemon._divisions, "want", lambda: wanted.append("all"))
    life.arbiter.owners = frozenset({TRAIN})
    monkeypatch.setattr(life.changes, "take", lambda: (False, False, frozenset({"torchpar-train@x.service"})))
    life.daemon._heard()
    monkeypatch.setattr(life.changes, "take", lambda: (False, False, frozenset({TRAIN})))
    life.daemon._heard()
    life.daemon._took_back(1, [])
    assert wanted == ["back", "all"] and life.arbiter.awake == {TRAIN}


def test_a_start_that_nobody_could_hear_yet_is_divided_for(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where control groups are is known after the first division only, in which such a service may not be yet."""
    divisions: list[float] = []
    monkeypatch.setattr(life.daemon._divisions, "want", lambda: divisions.append(life.now))
    monkeypatch.setattr(life.arbiter, "take", lambda lines: False)
    life.arbiter.root = str(tmp_path)
    for _ in range(2):
        life.daemon._divided(1, [])
    assert divisions == [life.now]


def placed(life: Life) -> str:
    """What status says of where the job is."""
    (row,) = (row for row in life.ask()["services"] if row["unit"] == TRAIN)
    return str(row["placed"])


def test_where_threads_were_before_they_were_moved_is_no_drift(life: Life) -> None:
    """Neither what an older look saw, nor one that was under way; a drift that is found again is one."""
    life.host.apply()
    life.host.start(TRAIN)
    assert placed(life) == "ok"
    as_planned = life.host.processes[TRAIN]
    elsewhere = (dataclasses.replace(as_planned[0], threads={as_planned[0].pid: CpuSet([0])}),)

    life.host.processes[TRAIN] = elsewhere
    life.watch.hear()
    assert placed(life) == "drift"
    life.host.processes[TRAIN] = as_planned
    life.daemon._see_moved(True)
    assert placed(life) == "ok"

    life.told.clear()
    life.host.processes[TRAIN] = elsewhere
    life.watch.hear()
    number = life.daemon._looks.want()
    life.host.processes[TRAIN] = as_planned
    life.daemon._see_moved(True)
    turn(life.daemon.selector, lambda: life.daemon._looks.number > number, PATIENCE)
    assert placed(life) == "ok" and life.told == []

    life.host.processes[TRAIN] = elsewhere
    number = life.daemon._looks.want()
    life.daemon._see_moved(True)
    turn(life.daemon.selector, lambda: life.daemon._looks.number > number, PATIENCE)
    assert placed(life) == "drift"
    assert [line for line in life.told if "does not run as planned (CPUs)" in line]


def test_it_starts_with_no_store_and_sees_the_first_generation(life: Life) -> None:
    """Of each notice there is a line when it comes and one when it goes."""
    assert life.ask()["generation"] is None
    assert life.told == [NOTHING, IN_FORCE_IS_OLDER.replace("generation 1", "what is in force")]
    life.host.apply()
    answer = life.ask()
    assert (answer["generation"], answer["conf"], answer["notices"]) == (1, "in sync", [])
    assert life.told[2:] == sorted(f"no longer: {line}" for line in life.told[:2])
    assert life.watch.status() == "generation 1, conf in sync; 0 of 2 services running"


def test_who_asks_has_what_holds_when_asked(life: Life) -> None:
    """A change of the conf, of the services and of the CPUs that came before the question is in the answer."""
    life.host.apply()
    assert life.ask()["conf"] == "in sync"
    life.host.text = f"{TEXT}# newer\n"
    assert life.ask()["conf"] == "newer"
    life.host.text = f"{TEXT}Foo=1\n"
    assert life.ask()["conf"] == "broken" and life.watch.status().startswith(
        "generation 1, conf is broken at /etc/torchpar.conf:9: [Infer b] Foo=1: unknown key"
    )
    life.host.text = TEXT
    life.host.start(TRAIN)
    assert life.ask()["conf"] == "in sync"
    assert life.watch.status() == "generation 1, conf in sync; 1 of 2 services running"
    life.host.systemd.runs["torchpar-train@x.service"] = "before"
    life.ask()
    assert life.watch.status().endswith("1 of 3 services running; 1 out of force and still running")
    life.told.clear()
    life.host.manifest = {"cpus_online": "0-1", "nodes_online": "0"}
    life.ask()
    said = "generation 1 was made for CPUs 0-3, this host has CPUs 0-1 now; make a new one: torchpar apply"
    assert life.told == [said]


def test_a_store_that_is_broken_and_mended_is_told_once_each_way(life: Life) -> None:
    """Its services are not said to have left it."""
    generation = life.host.apply()
    assert len(life.ask()["services"]) == 2
    (generation.path / "plan.json").write_text("x")
    answer = life.ask()
    (damaged,) = answer["notices"][:1]
    assert answer["services"] == [] and "generations/1 is damaged" in damaged
    life.ask()
    life.host.apply()
    assert len(life.ask()["services"]) == 2
    assert life.told.count(damaged) == life.told.count(f"no longer: {damaged}") == 1


def test_what_is_not_as_torchpar_left_it_is_in_the_next_answer(life: Life) -> None:
    """Not only after a minute: who asks is not told that all is well. And it is gone as soon."""
    units = life.host.apply().path / "units"
    drop_in = next(path for path in units.rglob("*.conf"))
    assert not life.ask()["notices"]
    for spoil, mend in (
        (lambda: os.mkfifo(units / "x"), (units / "x").unlink),
        (lambda: (drop_in.parent / "99.conf").touch(), (drop_in.parent / "99.conf").unlink),
        (lambda: drop_in.chmod(0o666), lambda: drop_in.chmod(0o644)),
    ):
        spoil()
        assert any("to mend it: torchpar apply" in notice for notice in life.ask()["notices"])
        mend()
        assert not life.ask()["notices"]


def test_a_systemd_that_does_not_answer_is_said_once(life: Life) -> None:
    """And the last observation is shown, as older."""
    life.host.apply()
    life.ask()
    life.host.systemd.refuses = "list"
    life.told.clear()
    for _ in range(2):
        assert life.ask(later=6.0)["notices"] == [OLDER]
        turn(life.daemon.selector, lambda: life.daemon._glances._look is None, PATIENCE)
    assert life.told == ["systemd does not answer"]


def test_an_edit_is_applied_by_itself_once(life: Life) -> None:
    """By a reload, which runs outside of the sandbox; one that fails is told, and not tried again."""
    life.host.apply()
    life.ask()
    life.host.systemd.refuses = "reload"
    life.host.text = TEXT.replace("ReserveCores=0", "ReserveCores=0\nAutoApply=yes")
    assert life.ask()["conf"] == "newer"
    life.host.systemd.runs["torchpar-train@x.service"] = "before"
    assert life.ask()["conf"] == "newer"
    assert life.reloads() == ["torchpard.service"] and life.told.count("systemd is busy") == 1
    life.host.systemd.refuses = ""
    life.host.text += "# another edit\n"
    life.ask()
    assert life.reloads() == ["torchpard.service"] * 2 and life.told.count("systemd is busy") == 1


def test_how_far_jobs_are_is_read_when_somebody_asks(life: Life) -> None:
    """However many do, no more often than once a second; what a job waited for is known after its end."""
    later = dataclasses.replace(FIRST, time=FIRST.time + 4, steps=FIRST.steps + 8, waited=FIRST.waited + 3)
    life.progress = (RankProgress(FIRST, later),)
    life.host.apply()
    life.host.start(TRAIN)
    life.ask()
    life.now += 2

    def row() -> dict[str, Any]:
        return next(dict(service) for service in life.ask()["services"] if service["unit"] == TRAIN)

    first = row()
    assert (first["throughput"]["steps_per_second"], first["throughput"]["bound"]) == (2.0, "loader")
    assert first["loading"].startswith("waited for data 75 % of the time")
    count = life.read.count(TRAIN)
    for _ in range(3):
        row()
    assert life.read.count(TRAIN) == count
    life.progress = ()
    life.host.systemd.runs.pop(TRAIN)
    life.now += 2
    last = row()
    assert last["throughput"] is None and last["loading"] == first["loading"]


def test_what_is_used_is_of_the_time_between_two_looks(life: Life) -> None:
    """Of the whole run where it is the first one; an answer says whether all is well."""
    life.host.apply()
    life.host.start(TRAIN)
    life.host.systemd.properties[TRAIN]["ActiveEnterTimestampMonotonic"] = int((life.now - 100) * 1e6)
    life.used = Use(50.0, 2**20)
    answer = life.ask()
    row = answer["services"][1]
    assert answer["well"] and (row["cpus_used"], row["memory_bytes"], row["state_age_seconds"]) == (0.5, 2**20, 100)
    life.now += 10
    life.used = Use(65.0, None)
    row = life.ask()["services"][1]
    assert (row["cpus_used"], row["memory_bytes"], row["state_age_seconds"]) == (1.5, None, 110)
    # Another run begins to count anew.
    life.now, life.used = life.now + 10, Use(1.0, None)
    life.ask()
    life.now, life.used = life.now + 2, Use(2.0, None)
    assert life.ask()["services"][1]["cpus_used"] == 0.5


@pytest.mark.parametrize(
    ("steps_per_second", "silent", "hangs"), [(2.0, 59, False), (2.0, 61, True), (0.1, 190, False)]
)
def test_a_job_that_makes_no_steps_hangs(life: Life, steps_per_second: float, silent: int, hangs: bool) -> None:
    """After twenty times what a step took, and after a minute; then not all is well."""
    last = dataclasses.replace(FIRST, time=life.now - silent, steps=FIRST.steps + 40)
    first = dataclasses.replace(FIRST, time=last.time - 40 / steps_per_second)
    life.progress = (RankProgress(first, last),)
    life.host.apply()
    life.host.start(TRAIN)
    answer = life.ask()
    row = answer["services"][1]
    assert answer["well"] is not hangs and bool(row["hang"]) is hangs
    if hangs:
        said = "hangs: no step and no batch for 61 s; a step took 500 ms before"
        assert row["wrong"] == [{"what": "hang", "text": said}] and answer["notices"] == [f"{TRAIN} {said}"]


def test_what_is_told_has_fields_that_find_it(life: Life) -> None:
    """The unit, so that its own journal has it too, and the kind, in whichever words it is said."""
    life.host.apply()
    life.ask()
    life.host.systemd.properties[TRAIN] = {"ActiveState": "failed", "Result": "timeout"}
    life.host.systemd.runs["torchpar-train@x.service"] = "now"
    life.ask()
    (line,) = (line for line in life.told if line.startswith(f"{TRAIN} has failed"))
    assert life.fields[line] == {
        "MESSAGE_ID": MESSAGE_IDS["failure"], "TORCHPAR_CHECK": "failure", "TORCHPAR_GENERATION": "1",
        "TORCHPAR_UNIT": TRAIN, "OBJECT_SYSTEMD_UNIT": TRAIN,
    }  # fmt: skip
    life.host.text = f"{TEXT}# newer\n"
    life.ask()
    assert life.fields[IN_FORCE_IS_OLDER]["MESSAGE_ID"] == MESSAGE_IDS["conf"]


# ---- what holds it ----


def test_services_that_hold_whoever_looks_hold_no_answer(life: Life) -> None:
    """Where nothing has changed it comes at once, also when a look is due; else it says that it is older."""
    life.host.apply()
    life.host.start(TRAIN)
    life.ask()
    life.hold()
    life.now += 3600
    assert (life.ask()["notices"], life.ask()["notices"]) == ([], [])
    life.host.text = f"{TEXT}# newer\n"
    assert life.ask(later=6.0)["notices"] == [OLDER]


def test_other_users_share_a_glance(life: Life) -> None:
    """However many ask, within a second of it; root has what holds."""
    life.host.apply()
    life.ask()
    life.uid = 1000
    assert life.ask()["generation"] == 1
    life.host.apply()
    assert [life.ask()["generation"] for _ in range(2)] == [1, 1]
    life.uid = 0
    assert life.ask()["generation"] == 2
    life.host.apply()
    life.uid, life.now = 1001, life.now + 2
    assert life.ask()["generation"] == 3


# ---- what systemd and it say to each other ----


class Process:
    """torchpard's loop in a process of its own, whose time passes as it is told; what it tells systemd."""

    def __init__(self, folder: Path, *, held: bool = False) -> None:
        """`held`: whatever looks at the host waits for ever."""
        self.sockets = make_sockets(folder)
        self._clock = mmap.mmap(-1, _TIME.size)  # shared with the process
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._door.settimeout(PATIENCE)
        self._door.bind(str(folder / "notify"))
        self.pid = os.fork()
        # So that its looks can be ended with it. Both do it, so that it is done for both.
        os.setpgid(self.pid, self.pid)
        if self.pid == 0:
            self._be_child(folder, held=held)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._door.close()

    def _be_child(self, folder: Path, *, held: bool) -> None:
        status = _FAILED
        try:
            os.environ.update(NOTIFY_SOCKET=str(folder / "notify"), WATCHDOG_USEC="1000000")
            host = make_fake_host(folder)
            host.apply()
            readers = dataclasses.replace(host.readers, read_manifest=signal.pause) if held else host.readers
            figures = Figures(Ledger(lambda unit, ranks: ()), Usage(lambda group: None), lambda unit: None)
            watch = Watch(host.store, host.systemd, readers, figures, lambda priority, line, fields: None)
            users = Users(lambda client: 0, lambda uid: True)
            doors = Doors(lambda: host.facts, lambda move, seconds: 0, lambda group: None)
            given = str(folder / "given")
            arbiter = Arbiter(host.store, host.systemd, doors, lambda priority, line, fields: None, folder=given)
            changes = Changes({}, lambda: "")
            parts = Parts(watch, arbiter, FakeLadder(folder / "climbs"), changes)
            daemon = Daemon(parts, Notifier(), self.sockets, users=users, clock=self._now)
            run(daemon)
            status = daemon._glances.number
        except BaseException:  # noqa: BLE001  # it must not become a second pytest
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)

    def _now(self) -> float:
        return float(_TIME.unpack(self._clock)[0])

    def pass_time(self, seconds: float) -> None:
        _TIME.pack_into(self._clock, 0, self._now() + seconds)

    def wait_for(self, *, message: str) -> list[str]:
        """What it says until it says this."""
        said: list[str] = []
        end = time.monotonic() + PATIENCE
        while message not in said:
            assert time.monotonic() < end, f"it says {said}"
            said.append(self._door.recv(4096).decode())
        return said

    def end(self) -> int:
        """The number of the glances that it has taken, once it has ended; its signal where one ended it."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert ended and ended.si_code == os.CLD_EXITED and ended.si_status != _FAILED
        return ended.si_status

    def stop(self) -> int:
        """Have it end; see end()."""
        os.kill(self.pid, signal.SIGTERM)
        self.wait_for(message="STOPPING=1")
        return self.end()


_TIME = struct.Struct("d")
_FAILED = 255
STATUS = "STATUS=generation 1, conf in sync; 0 of 2 services running"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_ready_at_once_says_its_status_and_ends_when_it_is_told_to(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Ready comes before the first look, which a slow host takes long for; alive is said all the time."""
    with Process(tmp_path) as process:
        said = process.wait_for(message=STATUS)
        assert said[:2] == ["READY=1", "WATCHDOG=1"]
        for _ in range(3):
            process.wait_for(message="WATCHDOG=1")
        os.kill(process.pid, number)
        assert process.wait_for(message="STOPPING=1") and process.end() == 0


@pytest.mark.parametrize("why", ["a hangup", "time"])
def test_a_hangup_and_time_have_it_look(tmp_path: Path, why: str) -> None:
    """Once each. A hangup ends nothing: systemd takes that for a clean end, after which nothing would start it."""
    with Process(tmp_path) as process:
        process.wait_for(message=STATUS)
        for number in (2, 3):
            make_fake_host(tmp_path).apply()
            if why == "time":
                process.pass_time(POLL_SECONDS)
            else:
                os.kill(process.pid, signal.SIGHUP)
            process.wait_for(message=STATUS.replace("generation 1", f"generation {number}"))
            for _ in range(3):
                process.wait_for(message="WATCHDOG=1")
        assert process.stop() == 2


def test_it_does_not_look_once_it_is_told_to_end(tmp_path: Path) -> None:
    """Nobody would hear of it."""
    with Process(tmp_path) as process:
        process.wait_for(message=STATUS)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
            os.kill(process.pid, number)
        assert process.wait_for(message="STOPPING=1") and process.end() == 0


def test_a_look_that_is_held_does_not_keep_the_loop_from_being_alive(tmp_path: Path) -> None:
    """The watchdog watches the loop; a disk that hangs is no reason to be killed, and to end is not to wait for it."""
    with Process(tmp_path, held=True) as process:
        said = [line for _ in range(5) for line in process.wait_for(message="WATCHDOG=1")]
        assert said == ["READY=1", *["WATCHDOG=1"] * 5]
        assert process.stop() == 0


def test_who_asks_before_there_is_anything_to_tell_is_hung_up_on_in_time(tmp_path: Path) -> None:
    """Also where what is looked at never answers."""
    with Process(tmp_path, held=True) as process, socket.socket(socket.AF_UNIX) as client:
        process.wait_for(message="READY=1")
        client.connect(process.sockets.root)
        client.setblocking(False)
        # Its time begins when it is let in.
        for _ in range(100):
            process.wait_for(message="WATCHDOG=1")
            with contextlib.suppress(BlockingIOError):
                assert client.recv(1) == b""
                return
            process.pass_time(15.0)
    pytest.fail("it still waits")


def test_a_clock_that_is_set_changes_nothing(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """By years, forth and back: the loop goes by the kernel's own, and so do all ages."""
    life.host.apply()
    life.host.start(TRAIN)
    life.host.systemd.properties[TRAIN] |= {"ActiveEnterTimestampMonotonic": 900e6}
    first = life.ask()
    told = list(life.told)
    real = time.time
    for years in (5, -5):
        monkeypatch.setattr(time, "time", lambda years=years: real() + years * 365.25 * 86400)
        life.now += POLL_SECONDS
        life.daemon.come_round()
        answer = life.ask()
        ages = {row["unit"]: row["state_age_seconds"] for row in answer["services"]}
        assert ages[TRAIN] == pytest.approx(life.now - 900) and answer["well"] == first["well"]
    assert life.told == told


def test_systemd_is_asked_once_for_all_while_nothing_changes(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when it has been heard that a service has started or ended, whatever the states say."""
    life.host.apply()
    asked: list[list[str]] = []
    show = life.host.systemd.show_units

    def show_units(units: Collection[str], properties: Collection[str]) -> str:
        asked.append(sorted(units))
        stopped = "".join(f"\n\nId={unit}\nActiveState=inactive\nSubState=dead\nResult=success\n" for unit in units)
        return show(units, properties) + stopped

    monkeypatch.setattr(life.host.systemd, "show_units", show_units)

    def look() -> None:
        pieces: list[bytes] = []
        life.watch.look(pieces.append)
        assert life.watch.take(b"".join(pieces).splitlines(), life.now)

    look()
    look()
    assert asked == [sorted([TRAIN, INFER])], "also of services that systemd has not loaded"
    life.watch.hear()
    look()
    look()
    assert len(asked) == 2
    life.host.systemd.runs["torchpar-train@x.service"] = "now"
    look()
    assert len(asked) == 3 and life.watch.observation["services"][-1]["name"] == "x"
