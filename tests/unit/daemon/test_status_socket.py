"""torchpard's loop: it answers whoever asks, and is held by nobody: no client, no job, no disk, no systemd."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torchpar.contract.errors import SystemdError
from torchpar.daemon import main, status_socket, watch
from torchpar.daemon.look import Looks, Write
from torchpar.daemon.status_socket import Client, Server
from torchpar.host.systemd import service_states

OBSERVATION: dict[str, Any] = {
    "version": 1, "generation": 1, "conf": "in sync", "conf_problem": None, "auto_apply": False, "services": [],
    "notices": [],
}  # fmt: skip

pytestmark = pytest.mark.subprocess


def turn(selector: selectors.BaseSelector, until: Callable[[], object], seconds: float = 60) -> None:
    """Go round the loop until something is true."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it does not come"
        for key, _ in selector.select(timeout=0.1):
            key.data()


# ---- looks ----


class Taken:
    """Looks of some work, and what came of them."""

    def __init__(self, work: Callable[[Write], None], seconds: int = 60) -> None:
        self.selector = selectors.DefaultSelector()
        self.got: list[tuple[int, list[bytes]]] = []
        self.looks = Looks(self.selector, work, seconds, lambda number, lines: self.got.append((number, lines)))

    def turn(self, count: int) -> list[tuple[int, list[bytes]]]:
        turn(self.selector, lambda: len(self.got) >= count)
        return self.got


def test_a_look_gives_its_lines_and_changes_nothing_here() -> None:
    """It is taken by another process."""
    seen: list[int] = []

    def work(write: Write) -> None:
        seen.append(os.getpid())
        write(b"x" * 1_000_000 + b"\n%d\nhalf" % os.getppid())

    taken = Taken(work)
    assert taken.looks.want() == 1
    ((number, lines),) = taken.turn(1)
    assert (number, lines) == (1, [b"x" * 1_000_000, b"%d" % os.getpid()]) and seen == []


def test_who_asks_during_a_look_gets_the_next_one() -> None:
    """The one under way may have looked before the change that is asked for; all who ask meanwhile share the next."""
    taken = Taken(lambda write: write(b"a\n"))
    assert [taken.looks.want() for _ in range(4)] == [1, 2, 2, 2]
    assert [number for number, _ in taken.turn(2)] == [1, 2]
    assert taken.looks.want() == 3


def test_a_look_that_is_held_ends_by_its_own_clock() -> None:
    """What it has said before counts; the next one begins."""

    def work(write: Write) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        write(b"begun\n")
        signal.pause()
        signal.pause()

    taken = Taken(work, seconds=1)
    taken.looks.want()
    assert taken.turn(1) == [(1, [b"begun"])]
    assert taken.looks.want() == 2


def test_a_look_that_breaks_is_a_traceback_and_no_end_of_the_loop(capfd: pytest.CaptureFixture[str]) -> None:
    """A bug in it is said, and the loop goes on."""

    def work(write: Write) -> None:
        raise RuntimeError("a bug")

    taken = Taken(work)
    taken.looks.want()
    assert taken.turn(1) == [(1, [])]
    assert "RuntimeError: a bug" in capfd.readouterr().err


def test_a_look_holds_no_connection_of_the_daemons() -> None:
    """Its client would wait for the end of the look."""
    ours, theirs = socket.socketpair()
    held = Taken(lambda write: signal.pause(), seconds=30)
    held.looks.want()
    theirs.close()
    ours.settimeout(20)
    assert ours.recv(1) == b""


# ---- the door ----

Door = tuple[Server, selectors.BaseSelector, list[Client]]


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """A server, its selector, and who has asked. Who connects is user 1000, a member, unless a test says otherwise."""
    monkeypatch.setattr(status_socket, "_peer_uid", lambda client: 1000)
    monkeypatch.setattr(status_socket, "may_ask", lambda uid: uid in (0, 1000, 1001))
    selector = selectors.DefaultSelector()
    asked: list[Client] = []
    made = Server(str(tmp_path / "door"), 0o660, selector, lambda server, client: asked.append(client))
    yield made, selector, asked
    selector.close()


def connect(path: Path, count: int = 1) -> list[socket.socket]:
    """So many connections to the door."""
    doors = [socket.socket(socket.AF_UNIX) for _ in range(count)]
    for each in doors:
        each.settimeout(20)
        each.connect(str(path / "door"))
    return doors


def test_one_users_flood_takes_no_place_from_root(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand connections that stay: eight are let in, all others are hung up on, root and others are answered."""
    made, selector, asked = door
    flood = connect(tmp_path, 1000)
    turn(selector, lambda: not selector.select(0))
    assert len(asked) == 8
    for uid in (1001, 0):
        monkeypatch.setattr(status_socket, "_peer_uid", lambda client, uid=uid: uid)
        (mine,) = connect(tmp_path)
        turn(selector, lambda uid=uid: asked[-1].uid == uid)
        made.answer(asked[-1], b"answer\n")
        turn(selector, lambda: len(made._clients) == 8)
        assert mine.recv(100) == b"answer\n" and mine.recv(100) == b""
    for each in flood:
        each.close()


def test_a_client_that_never_reads_is_hung_up_on(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is another's then, and nothing of the answer is kept."""
    made, selector, asked = door
    connections = connect(tmp_path, 8)
    turn(selector, lambda: len(asked) == 8)
    for client in asked:
        made.answer(client, b"x" * 50_000_000)
    for _ in range(20):
        for key, _ in selector.select(0):
            key.data()
    monkeypatch.setattr(status_socket, "_PATIENCE", -1.0)
    made.drop_slow_clients()
    connections += connect(tmp_path)
    turn(selector, lambda: len(asked) == 9)
    assert made.waiting() == asked[8:]


def test_the_user_database_is_asked_once_for_a_flood(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be on the network."""
    _, selector, asked = door
    times: list[int] = []
    monkeypatch.setattr(status_socket, "may_ask", lambda uid: bool(times.append(uid)))
    connections = connect(tmp_path, 100)
    turn(selector, lambda: not selector.select(0))
    assert times == [1000] and asked == [] and connections[99].recv(1) == b""


# ---- the whole loop ----


class Host:
    """A daemon whose systemd and services are made up; what it tells, and how to ask it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.states = folder / "states"
        self.told: list[str] = []
        monkeypatch.setattr(main, "JOB_SOCKET", str(folder / "job"))
        monkeypatch.setattr(main, "STATUS_SOCKET", str(folder / "door"))
        monkeypatch.setattr(main, "ROOT_STATUS_SOCKET", str(folder / "root"))
        monkeypatch.setattr(main, "tell", lambda level, line: self.told.append(line))
        monkeypatch.setattr(watch, "service_states", self.read_states)
        monkeypatch.setattr(watch, "observe", lambda store, conf: self.observe())
        monkeypatch.setattr(watch.ConfReader, "stamp", lambda conf: "conf")
        self.say("one")
        self.daemon = main._Daemon()

    def say(self, states: str, **observed: Any) -> None:
        """From now on systemd says this of its services, and a look finds that."""
        self.states.write_text(json.dumps([states, {**OBSERVATION, **observed}]))

    def read_states(self) -> str:
        states = json.loads(self.states.read_text())[0]
        if states == "silent":
            raise SystemdError("systemd does not answer")
        return str(states)

    def observe(self) -> dict[str, Any]:
        if (self.folder / "held").exists():
            signal.pause()
        return dict(json.loads(self.states.read_text())[1])

    def ask(self) -> dict[str, Any]:
        """What a client gets."""
        (client,) = connect(self.folder)
        client.setblocking(False)
        data = bytearray()

        def has_all() -> bool:
            self.daemon.end_what_is_late()
            with contextlib.suppress(BlockingIOError):
                while piece := client.recv(65536):
                    data.extend(piece)
                return True
            return False

        turn(self.daemon.selector, has_all)
        return dict(json.loads(data)) if data else {}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A daemon that has just started, asked by root."""
    monkeypatch.setattr(status_socket, "_peer_uid", lambda client: 0)
    return Host(tmp_path, monkeypatch)


def test_who_asks_has_what_holds_when_asked(host: Host) -> None:
    """The first one waits for the first look; a change that came before the question is in the answer."""
    assert host.ask()["generation"] == 1
    for number in (2, 3):
        host.say(f"changed {number}", generation=number, notices=[f"notice {number}"])
        assert host.ask()["generation"] == number
    assert host.told == ["notice 2", "notice 3", "no longer: notice 2"]


def test_services_that_hold_whoever_looks_hold_no_answer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing has changed it comes at once, also when a look is due; else it says that it is older."""
    host.ask()
    (host.folder / "held").touch()
    monkeypatch.setattr(host.daemon._watch, "_next_verify", 0.0)
    monkeypatch.setattr(main, "_FRESH_SECONDS", 1e9)
    assert (host.ask()["notices"], host.ask()["notices"]) == ([], [])
    host.say("changed")
    monkeypatch.setattr(main, "_FRESH_SECONDS", 0.0)
    assert host.ask()["notices"] == [main._OLDER]


def test_other_users_share_a_glance(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask, within a second of it; root has what holds."""
    host.ask()
    monkeypatch.setattr(main, "_SHARED_SECONDS", 1e9)
    monkeypatch.setattr(status_socket, "may_ask", lambda uid: True)
    uids = iter([1000, 1000, 1001, 0, 1000])
    monkeypatch.setattr(status_socket, "_peer_uid", lambda client: next(uids))
    generations = [host.ask()["generation"]]
    host.say("changed", generation=2)
    generations += [host.ask()["generation"] for _ in range(4)]
    assert generations == [1, 1, 1, 2, 2]


def test_a_systemd_that_does_not_answer_is_said_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last observation is shown."""
    host.ask()
    host.say("silent")
    monkeypatch.setattr(main, "_FRESH_SECONDS", 0.5)
    assert [host.ask()["notices"] for _ in range(2)] == [[main._OLDER]] * 2
    assert host.told == ["systemd does not answer"]


def test_an_edit_is_applied_by_itself_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a reload, which runs outside of the sandbox; one that fails is told, and not tried again."""
    host.ask()
    log = host.folder / "reloads"

    def reload(unit: str) -> None:
        with log.open("a") as file:
            file.write(f"{unit}\n")
        raise SystemdError("systemd is busy")

    monkeypatch.setattr(watch, "reload_without_waiting", reload)
    for number in (2, 3):
        host.say(f"{number}", conf="newer", auto_apply=True)
        assert host.ask()["conf"] == "newer"
    assert log.read_text() == "torchpard.service\n" and host.told == ["systemd is busy"]


def test_the_states_are_asked_of_systemd_alone() -> None:
    """What stands in for it here has its name."""
    assert watch.service_states is service_states
