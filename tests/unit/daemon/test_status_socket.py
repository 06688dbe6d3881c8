"""torchpard's status socket and its looks: whoever asks is answered, and nobody holds the others."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from torchpar.daemon.look import Looks, Write
from torchpar.daemon.status_socket import Client, Server, Users

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
        self.now = 1000.0
        self.selector = selectors.DefaultSelector()
        self.got: list[tuple[int, list[bytes]]] = []
        self.looks = Looks(self.selector, work, seconds, self._take, clock=lambda: self.now)

    def _take(self, number: int, lines: list[bytes]) -> None:
        self.got.append((number, lines))

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


def test_a_look_that_nothing_ends_is_given_up(tmp_path: Path) -> None:
    """Some seconds after its own clock should have ended it; what it has said counts."""
    lock = tmp_path / "lock"

    def work(write: Write) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        write(b"begun\n")
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    with lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        taken = Taken(work)
        taken.looks.want()
        turn(taken.selector, taken.looks.lines)
        for seconds, got in ((60.0, []), (6.0, [(1, [b"begun"])])):
            taken.now += seconds
            taken.looks.end_if_late()
            assert taken.got == got


def test_a_hangup_ends_no_look_and_no_program_of_one() -> None:
    """It is sent to every process of the service where a person sends it by systemctl."""

    def work(write: Write) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        write(subprocess.run(["sh", "-c", "kill -s HUP $$; echo alive"], check=True, stdout=subprocess.PIPE).stdout)

    taken = Taken(work)
    taken.looks.want()
    assert taken.turn(1) == [(1, [b"alive"])]


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

@dataclass
class Door:
    """A server, who has asked, whom the user database was asked for, and a clock. Who connects is `uid`."""

    path: Path
    uid: int = 1000
    members: tuple[int, ...] = (0, 1000, 1001)
    now: float = 1000.0
    asked: list[Client] = field(default_factory=list)
    looked_up: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        users = Users(lambda client: self.uid, self.may_ask)
        self.server = Server(
            str(self.path / "door"), 0o660, self.selector, self.hear, users=users, clock=lambda: self.now
        )

    def hear(self, server: Server, client: Client) -> None:
        self.asked.append(client)

    def may_ask(self, uid: int) -> bool:
        self.looked_up.append(uid)
        return uid in self.members

    def turn(self, until: Callable[[], object]) -> None:
        turn(self.selector, until)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """A server at which user 1000, a member, connects, unless a test says otherwise."""
    made = Door(tmp_path)
    yield made
    made.selector.close()


def connect(path: Path, count: int = 1) -> list[socket.socket]:
    """So many connections to the door."""
    doors = [socket.socket(socket.AF_UNIX) for _ in range(count)]
    for each in doors:
        each.settimeout(20)
        each.connect(str(path / "door"))
    return doors


def test_one_users_flood_takes_no_place_from_root(door: Door, tmp_path: Path) -> None:
    """A thousand connections that stay: eight are let in, all others are hung up on, root and others are answered."""
    flood = connect(tmp_path, 1000)
    door.turn(lambda: not door.selector.select(0))
    assert len(door.asked) == 8
    for uid in (1001, 0):
        door.uid = uid
        (mine,) = connect(tmp_path)
        door.turn(lambda uid=uid: door.asked[-1].uid == uid)
        door.server.answer(door.asked[-1], b"answer\n")
        door.turn(lambda: len(door.server._clients) == 8)
        assert mine.recv(100) == b"answer\n" and mine.recv(100) == b""
    for each in flood:
        each.close()


def test_a_client_that_never_reads_is_hung_up_on(door: Door, tmp_path: Path) -> None:
    """Its place is another's then, and nothing of the answer is kept."""
    connections = connect(tmp_path, 8)
    door.turn(lambda: len(door.asked) == 8)
    for client in door.asked:
        door.server.answer(client, b"x" * 50_000_000)
    for _ in range(20):
        for key, _ in door.selector.select(0):
            key.data()
    door.server.drop_slow_clients()
    assert len(door.server._clients) == 8
    door.now += 60
    door.server.drop_slow_clients()
    connections += connect(tmp_path)
    door.turn(lambda: len(door.asked) == 9)
    assert door.server.waiting() == door.asked[8:]


def test_the_user_database_is_asked_once_for_a_flood(door: Door, tmp_path: Path) -> None:
    """It may be on the network."""
    door.members = ()
    connections = connect(tmp_path, 100)
    door.turn(lambda: not door.selector.select(0))
    assert door.looked_up == [1000] and door.asked == [] and connections[99].recv(1) == b""
    door.now += 60
    assert connect(tmp_path)
    door.turn(lambda: len(door.looked_up) == 2)
