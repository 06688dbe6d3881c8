"""Has services that cannot be placed as planned started all the same, and placed as before when that is possible.

systemd ends a start with status 215 or 242 where the CPUs or the memory nodes of a service are gone. torchpard writes
no unit: it asks systemd for torchpar-recompile.service, which makes a generation for the host as it is, and for another
start, which comes after that. Should that fail as well, a third one is without what systemd could not set. Nothing is
tried more often on one host. When the CPUs and nodes are those of before again, a generation is made for them.

It looks in a child process, as all looks are taken; see look.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torchpar.conf.parse import parse_config
from torchpar.conf.values import Hotplug
from torchpar.contract.errors import StoreError, TorchparError
from torchpar.contract.fallback import MOST_TRIES, Fallback, Fallen, make_fallback_json, say_manifest
from torchpar.contract.given import Given, kept_folder, read_given
from torchpar.contract.journal import Priority
from torchpar.contract.paths import FALLBACK, GIVEN
from torchpar.daemon.look import Write
from torchpar.facts.topology import HostFacts
from torchpar.generations.generation import Content, Generation
from torchpar.generations.store import Store
from torchpar.host.affinity import SECONDS, UnitMove
from torchpar.host.in_force import read_fallback
from torchpar.host.systemd import RunningState, Units
from torchpar.plan.record import ServiceRecord
from torchpar.verify.failure import misplaced_by, why_failed
from torchpar.verify.repair import make_repair
from torchpar.verify.service import ReadRunningUnit

RECOMPILE = "torchpar-recompile.service"
# What has failed longer ago nobody waits for.
_RECENT_SECONDS = 600.0


class Systemd(Units, Protocol):
    """The door to systemd, as much of it as a ladder needs. Everything raises SystemdError."""

    def running_units(self) -> tuple[RunningState, ...]:
        """Reads the services and ad-hoc jobs that run, or whose start or end is under way."""

    def failed_services(self) -> tuple[str, ...]:
        """Lists the units of services that have failed."""

    def start_without_waiting(self, units: Collection[str]) -> None:
        """Asks for starts, and does not wait for them."""


@dataclass(frozen=True)
class Doors:
    """The doors of a ladder to the host: its CPUs and nodes as in a manifest, its facts, processes and threads."""

    read_manifest: Callable[[], Mapping[str, str]]
    read_facts: Callable[[], HostFacts]
    read_running_unit: ReadRunningUnit
    move_unit: Callable[[UnitMove, float], int]


@dataclass(frozen=True)
class Failed:
    """A service that has failed: in which run of it, why in words, with which status it could not be placed (None: it
    failed for another reason), and whether anybody may still wait for it."""

    unit: str
    invocation: str
    why: str
    status: int | None
    is_recent: bool = True


@dataclass(frozen=True)
class Seen:
    """The host as a ladder sees it: the generation in force, the CPUs and nodes that it was made for, those that there
    are, the services that have failed, and whether each change of the host is to be followed."""

    generation: int
    made_for: Mapping[str, str]
    host: Mapping[str, str]
    failed: tuple[Failed, ...] = ()
    follow: bool = False


@dataclass(frozen=True)
class Step:
    """A step: what is kept of it (None: nothing), the units to start, whether a generation is to be made, and what is
    told of which unit ("" for the host)."""

    fallback: Fallback | None
    start: tuple[str, ...] = ()
    recompile: bool = False
    told: tuple[tuple[str, str], ...] = ()


def take_step(fallback: Fallback | None, seen: Seen) -> Step:
    """Decides what to do about services that could not be placed, and about a host that is another one now."""
    before = fallback.before if fallback else seen.made_for
    known = {one.unit: one for one in fallback.units} if fallback else {}
    changed = bool(fallback and fallback.host != seen.host)
    start: list[str] = []
    told: list[tuple[str, str]] = []
    if changed:
        # What could not run on the host before may run on this one.
        start += [one.unit for one in seen.failed if one.unit in known and one.status is not None]
        back = seen.host == before
        known = {} if back else {unit: dataclasses.replace(one, tries=0) for unit, one in known.items()}
    for one in seen.failed:
        tries = known[one.unit].tries if one.unit in known else 0
        is_new = one.unit not in known or known[one.unit].invocation != one.invocation
        if one.status is not None and one.is_recent and one.unit not in start and is_new and tries < MOST_TRIES:
            known[one.unit] = Fallen(one.unit, one.status, one.invocation, tries + 1)
            start.append(one.unit)
            told.append((one.unit, _say_again(one, without=known[one.unit].is_without)))
    fits = seen.made_for == seen.host
    asked = fallback.asked if fallback and not changed else None
    new_host = not fits and (seen.follow or fallback is not None) and asked != seen.generation
    if new_host and not start:
        told.append(("", f"this host has {say_manifest(seen.host, seen.made_for)} now: its services are placed anew"))
    recompile = new_host or bool(start)
    if fits and not known:
        return Step(None, tuple(start), recompile, tuple(told))
    if not recompile and not known and fallback is None:
        # Whoever is to be told of the host is told by the watch.
        return Step(None)
    asked = seen.generation if recompile or asked is None else asked
    return Step(Fallback(before, seen.host, asked, tuple(known.values())), tuple(start), recompile, tuple(told))


def _say_again(failed: Failed, *, without: bool) -> str:
    how = "without that" if without else "with a placement for this host as it is"
    return f"{failed.unit} could not start: {failed.why}; it is started again {how}"


def _read_failed(unit: str, properties: Mapping[str, Any]) -> Failed:
    since = properties.get("InactiveEnterTimestampMonotonic")
    is_recent = not since or time.monotonic() - since / 1e6 < _RECENT_SECONDS
    invocation = bytes(properties.get("InvocationID", ())).hex()
    return Failed(unit, invocation, why_failed(properties), misplaced_by(properties), is_recent)


class Ladder:
    """Takes the steps; `path` keeps what has been done, also when torchpard is killed, and `given` is the arbiter's."""

    def __init__(
        self,
        store: Store,
        systemd: Systemd,
        doors: Doors,
        tell: Callable[[Priority, str, Mapping[str, str]], None],
        *,
        path: str = FALLBACK,
        given: str = GIVEN,
    ) -> None:
        self._store, self._systemd, self._doors, self._tell = store, systemd, doors, tell
        self._path, self._given = path, given

    # ---- in the child ----

    def look(self, write: Write) -> None:
        """Takes a step where one is due, puts threads back that the kernel has moved, and writes what is told of it."""
        told: list[tuple[str, str]] = []
        try:
            active = self._store.active()
            if active:
                content = active.read()
                fallback = read_fallback(self._path)
                seen = self._see(active.number, content)
                told += self._take_step(fallback, seen)
                follows = seen.follow or fallback is not None
                self._put_back(content, self._store.previous(active) if follows else None)
        except TorchparError:
            pass  # the watch says so
        except OSError as error:
            told.append(("", f"services that cannot be placed as planned are not started: {error}"))
        write(json.dumps(told).encode() + b"\n")

    def _take_step(self, before: Fallback | None, seen: Seen) -> Sequence[tuple[str, str]]:
        step = take_step(before, seen)
        if step.fallback is None:
            if before:
                os.unlink(self._path)
        elif step.fallback != before:
            temporary = f"{self._path}.{os.getpid()}"
            with open(temporary, "w", encoding="ascii") as file:
                file.write(make_fallback_json(step.fallback))
            os.replace(temporary, self._path)
        if step.recompile:
            # In one transaction: a service comes After= it.
            self._systemd.start_without_waiting([RECOMPILE, *step.start])
        return step.told

    def _see(self, generation: int, content: Content) -> Seen:
        host = dict(self._doors.read_manifest())
        declared = {service.unit for service in content.services()}
        failed = []
        for unit in self._systemd.failed_services():
            if unit in declared:
                properties = self._systemd.unit_properties(unit)
                # One that waits for its start is in its failed state until then.
                if not properties.get("Job", (0,))[0]:
                    failed.append(_read_failed(unit, properties))
        follow = False
        if host != content.manifest:
            config = parse_config(content.conf, self._doors.read_facts())
            follow = config.host.hotplug is Hotplug.FOLLOW
        return Seen(generation, content.manifest, host, tuple(failed), follow)

    def _put_back(self, content: Content, previous: Generation | None) -> None:
        """Moves threads that are elsewhere than they may be.

        A CPU that goes takes its threads to others, and kernel 6.1 gives the ranks of a service the CPUs of all when
        one goes or comes. A service goes on with the plan that it was started with, unless `previous` was made for
        another host: then it is moved to the plan in force.
        """
        before: dict[str, ServiceRecord] = {}
        with contextlib.suppress(StoreError):
            old = previous.read() if previous else content
            if old.manifest != content.manifest:
                before = {service.unit: service for service in old.services()}
        running = {state.unit: state for state in self._systemd.running_units()}
        for service in (service for service in content.services() if service.unit in running):
            state, had = running[service.unit], before.get(service.unit)
            given, kept = (self._read_given(state, folder) for folder in (self._given, kept_folder(self._given)))
            if had and kept and not given and len(had.ranks) == len(service.ranks):
                # It is noted anew, with the plan in force.
                os.unlink(os.path.join(kept_folder(self._given), service.unit))
                kept = None
            seen = self._doors.read_running_unit(service.unit, state.main_pid, state.control_group)
            move = make_repair(service, seen, given or kept, state.control_group, None if kept else had)
            if move:
                self._doors.move_unit(move, SECONDS)

    def _read_given(self, state: RunningState, folder: str) -> Given | None:
        given = read_given(state.unit, folder)
        return given if given and given.invocation == state.invocation else None

    # ---- in the daemon ----

    def take(self, lines: Sequence[bytes]) -> None:
        """Tells what a look has done."""
        for unit, text in json.loads(lines[0]) if lines else ():
            fields = {"TORCHPAR_UNIT": unit, "OBJECT_SYSTEMD_UNIT": unit} if unit else {}
            self._tell(Priority.WARNING, text, fields)
