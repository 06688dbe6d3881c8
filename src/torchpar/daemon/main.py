"""Runs torchpard: one loop that answers, has others look, and tells systemd that it is alive; torchpard.service."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torchpar.contract.errors import printable
from torchpar.contract.journal import Priority, is_journal, write
from torchpar.contract.notify import Notifier
from torchpar.contract.paths import ROOT_STATUS_SOCKET, STATUS_SOCKET
from torchpar.daemon.arbiter import Arbiter, Doors
from torchpar.daemon.changes import Changes
from torchpar.daemon.figures import live_figures
from torchpar.daemon.ladder import Doors as LadderDoors
from torchpar.daemon.ladder import Ladder
from torchpar.daemon.look import Looks, Write
from torchpar.daemon.status_socket import Client, Server, Users
from torchpar.daemon.watch import FIGURES_POLL_SECONDS, POLL_SECONDS, SMALL_LOOK_SECONDS, Watch
from torchpar.generations.store import Store
from torchpar.host import systemd
from torchpar.host.affinity import move_unit
from torchpar.host.conf import FOLDERS
from torchpar.host.facts import read_facts, read_manifest
from torchpar.host.job_folder import is_idle
from torchpar.host.journal import write_entry
from torchpar.host.processes import find_group, read_cpuset, read_running_unit
from torchpar.verify.observe import live_readers

# Seconds until the loop comes round by itself.
_PAUSE = 1.0


# In which a child has to end: of a glance, the conf's disk and systemd; of a look, all services too.
_GLANCE_SECONDS = 20
_LOOK_SECONDS = 120
_DIVIDE_SECONDS = 20
_BACK_SECONDS = 5
_LADDER_SECONDS = 120
# After the host's CPUs or memory nodes have changed; a virtual machine that is resized takes a second for each.
_SETTLING_SECONDS = 5.0
# How long what has changed may go on changing before it is looked at.
_TOGETHER_SECONDS = 0.5
# After a service has started or ended it is looked again: its processes are there only then, and have not all waited.
_DIVIDE_AGAIN = (0.5, 4.0)

# Seconds after which a client has the last observation, where a newer one is not there yet; the first is waited for.
_FRESH_SECONDS = 5.0
_FIRST_SECONDS = 14.0
# For which other users than root are answered from one glance: however many ask, they take no more of the host.
_SHARED_SECONDS = 1.0
OLDER = "torchpard is still looking, and this is what it saw before"


@dataclass(frozen=True)
class Sockets:
    """The paths at which torchpard listens: to root, and to members of its group."""

    root: str = ROOT_STATUS_SOCKET
    members: str = STATUS_SOCKET


class Climbs(Protocol):
    """A ladder, as much of it as a daemon needs."""

    host_changed: bool

    def look(self, write: Write) -> None:
        """Takes a step where one is due, in a child."""

    def take(self, lines: Sequence[bytes]) -> None:
        """Tells what a look has done."""


@dataclass(frozen=True)
class Parts:
    """The parts of a daemon: one watches, one divides CPUs, one starts again what could not be placed, one hears."""

    watch: Watch
    arbiter: Arbiter
    ladder: Climbs
    changes: Changes


class Daemon:
    """The watch, the socket, and what systemd is told of them.

    Nothing here waits for anything: glances and looks are taken by children, and root is answered from the last
    observation as soon as a glance that began later says that it still holds.
    """

    def __init__(
        self,
        parts: Parts,
        notifier: Notifier,
        sockets: Sockets,
        *,
        users: Users,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.notifier = notifier
        self.selector = selectors.DefaultSelector()
        self._watch, self._arbiter, self._ladder, self._clock = parts.watch, parts.arbiter, parts.ladder, clock
        self._glances = Looks(self.selector, self._watch.glance, _GLANCE_SECONDS, self._glanced, clock=clock)
        self._looks = Looks(self.selector, self._watch.look, _LOOK_SECONDS, self._looked, clock=clock)
        self._divisions = Looks(self.selector, self._arbiter.look, _DIVIDE_SECONDS, self._divided, clock=clock)
        self._backs = Looks(self.selector, self._arbiter.take_back, _BACK_SECONDS, self._took_back, clock=clock)
        self._ladders = Looks(self.selector, self._ladder.look, _LADDER_SECONDS, self._climbed, clock=clock)
        self._ladder_at: float | None = None
        self._changes = parts.changes
        self.selector.register(self._changes, selectors.EVENT_READ, self._heard)
        self._divide_at: list[float] = []
        self._groups = ""
        self._servers = (
            Server(sockets.root, 0o600, self.selector, self._asked, users=users, clock=clock),
            Server(sockets.members, 0o660, self.selector, self._asked, users=users, clock=clock),
        )
        self._fresh_until = 0.0
        # The look that was the last when threads were moved, and the last one that was not believed.
        self._moved_in = self._redone = -1
        self._next_poll = clock() + POLL_SECONDS
        self._next_small_look = clock() + SMALL_LOOK_SECONDS
        self._next_figures = clock() + FIGURES_POLL_SECONDS
        self._looks.want()
        self._divisions.want()
        self._ladders.want()

    def come_round(self, *, at_once: bool = False) -> None:
        """Lets go of what has taken too long; now and then, or at once, sees whether anything has changed."""
        self._end_what_is_late()
        now = self._clock()
        if now >= self._next_small_look:
            self._next_small_look = now + SMALL_LOOK_SECONDS
            if self._changes.has_host_changed():
                # Not at once: CPUs come and go one by one.
                at_once, self._ladder_at = True, now + _SETTLING_SECONDS
            if self._arbiter.has_idle_changed():
                self._divisions.want()
        if now >= self._next_figures:
            self._next_figures = now + FIGURES_POLL_SECONDS
            self._watch.read_figures(now)
        if at_once or now >= self._next_poll:
            self._next_poll = now + POLL_SECONDS
            self._changes.watch()
            self._glances.want()
        if self._ladder_at is not None and now >= self._ladder_at:
            self._ladder_at = None
            self._ladder.host_changed = True
            self._ladders.want()
        if self._divide_at and now >= self._divide_at[0]:
            del self._divide_at[0]
            self._divisions.want()

    def give_back(self) -> None:
        """Gives all services their planned CPUs, at the end of torchpard."""
        self._arbiter.give_back()

    def _divide(self) -> None:
        """Has the CPUs divided anew, since something has started or ended."""
        self._divisions.want()
        self._divide_at = [self._clock() + seconds for seconds in _DIVIDE_AGAIN]

    def _heard(self) -> None:
        services, others, awake = self._changes.take()
        self._take_back(awake & self._arbiter.owners)
        if services:
            self._watch.hear()
        if services or others:
            self._divide()
            # Not at once: whoever writes one file of the conf may write more.
            self._next_poll = min(self._next_poll, self._clock() + _TOGETHER_SECONDS)

    def _take_back(self, owners: frozenset[str]) -> None:
        """Has what these owners need taken back at once, and all divided anew then."""
        if owners:
            self._arbiter.wake(owners)
            self._backs.want()

    def _took_back(self, number: int, lines: list[bytes]) -> None:
        self._see_moved(self._arbiter.took_back(lines))
        self._divisions.want()

    def _divided(self, number: int, lines: list[bytes]) -> None:
        self._see_moved(self._arbiter.take(lines))
        self._changes.watch_idle(self._arbiter.idle_owners())
        # Who has had a request before it was listened to.
        self._take_back(self._arbiter.awake_owners())
        self._watch.moved = self._arbiter.moved
        root = self._arbiter.root
        if root and root != self._groups:
            self._groups = root
            self._changes.watch_groups(root)
            # What has started while nobody heard of it may not have been there for this division.
            self._divide()

    def _see_moved(self, moved: bool) -> None:
        """Takes note of threads that have been moved: where they were seen before is not true any more."""
        if moved:
            self._watch.hear()
            self._moved_in = self._looks.number

    def _climbed(self, number: int, lines: list[bytes]) -> None:
        self._ladder.take(lines)

    def _end_what_is_late(self) -> None:
        self._glances.end_if_late()
        self._looks.end_if_late()
        self._divisions.end_if_late()
        self._backs.end_if_late()
        self._ladders.end_if_late()
        now = self._clock()
        for server, client in self._waiting():
            seconds = now - client.since
            if self._watch.observation and seconds > _FRESH_SECONDS:
                server.answer(client, self._watch.answer(now, OLDER))
            elif seconds > _FIRST_SECONDS:
                server.hang_up(client)
        for server in self._servers:
            server.drop_slow_clients()

    def _waiting(self) -> list[tuple[Server, Client]]:
        return [(server, client) for server in self._servers for client in server.waiting()]

    def _asked(self, server: Server, client: Client) -> None:
        now = self._clock()
        if client.uid != 0 and now < self._fresh_until:
            server.answer(client, self._watch.answer(now))
        else:
            client.glance = self._glances.want()

    def _glanced(self, number: int, lines: list[bytes]) -> None:
        now = self._clock()
        stamp = self._watch.read_stamp(lines)
        fresh = stamp is not None and stamp == self._watch.stamp
        self._fresh_until = now + _SHARED_SECONDS if fresh else 0.0
        look = None
        if stamp is not None and not fresh:
            # It has changed, and may be a start or an end that was not heard; one that was is looked at already.
            self._divisions.want()
        if stamp is not None and (not fresh or self._watch.is_due(now)):
            under_way = self._looks.lines()
            is_it = bool(under_way) and self._watch.read_stamp(under_way[:1]) == stamp
            look = self._looks.number if is_it else self._looks.want()
        for server, client in self._waiting():
            if client.look is None and client.glance <= number:
                if fresh:
                    server.answer(client, self._watch.answer(now))
                else:
                    client.look = look

    def _looked(self, number: int, lines: list[bytes]) -> None:
        now = self._clock()
        moving = self._moved_in == number or self._divisions.is_under_way or self._backs.is_under_way
        if moving and self._redone != number - 1 and self._watch.has_drift(lines):
            # Threads were on their way while it looked: what it found is none, unless it is found again.
            self._redone = number
            again = self._looks.want()
            for _, client in self._waiting():
                if client.look is not None and client.look <= number:
                    client.look = again
            return
        if self._watch.take(lines, now):
            self.notifier.send(STATUS=self._watch.status())
            observed = self._watch.observation
            if observed["fallback"] or any(row.get("misplaced") for row in observed["services"]):
                self._ladders.want()
        self._next_poll = min(self._next_poll, self._watch.next_look)
        if not self._watch.observation:
            return
        for server, client in self._waiting():
            if client.look is not None and client.look <= number:
                server.answer(client, self._watch.answer(now))


def main() -> None:
    """Runs torchpard on this host until SIGTERM or SIGINT."""
    watch = Watch(Store(), systemd, live_readers(), live_figures(), tell)
    arbiter = Arbiter(Store(), systemd, Doors(read_facts, move_unit, find_group, is_idle, read_cpuset), tell)
    doors = LadderDoors(read_manifest, read_facts, read_running_unit, move_unit)
    ladder = Ladder(Store(), systemd, doors, tell)
    store = Store()
    # systemd makes the folder "generator" anew whenever it reads its units again; 252 then also gives control groups
    # the CPUs of their units again.
    units = {**dict.fromkeys(systemd.EDITED, "torchpar"), os.path.dirname(systemd.GENERATED): "generator"}
    folders = {**units, **FOLDERS, str(store.directory): "", str(store.generations): ""}
    changes = Changes(folders, lambda: repr(read_manifest()))
    run(Daemon(Parts(watch, arbiter, ladder, changes), Notifier(), Sockets(), users=Users()))


def run(daemon: Daemon) -> None:
    """Goes round the loop until SIGTERM or SIGINT; SIGHUP has it look at once."""
    signals = _Signals(daemon.selector)
    daemon.notifier.send(READY="1")
    pause = min(_PAUSE, (daemon.notifier.watchdog_seconds or 4 * _PAUSE) / 4)
    while True:
        # The loop itself is what the watchdog watches.
        daemon.notifier.send(WATCHDOG="1")
        for key, _ in daemon.selector.select(timeout=pause):
            key.data()
        came = signals.take()
        if came & {signal.SIGTERM, signal.SIGINT}:
            break
        daemon.come_round(at_once=signal.SIGHUP in came)
    daemon.notifier.send(STOPPING="1")
    daemon.give_back()


def tell(priority: Priority, line: str, fields: Mapping[str, str]) -> None:
    """Writes a line for the journal with these fields, which say what is wrong with which unit."""
    line = printable(line, 2000)
    if not is_journal(2) or not write_entry({"MESSAGE": line, "PRIORITY": str(int(priority)), **fields}):
        write([line], priority)


class _Signals:
    """The signals that come, which wake the loop up.

    One that ends a process by default would end it for good: systemd takes SIGHUP for a clean end, too, after which
    Restart=on-failure starts nothing (systemd.service(5)).
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        selector.register(self._reader, selectors.EVENT_READ, lambda: None)

    def take(self) -> set[int]:
        """Returns those that came since they were taken last."""
        try:
            return set(os.read(self._reader, 1024))
        except BlockingIOError:
            return set()
