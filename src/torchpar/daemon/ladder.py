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
from torchpar.contract.errors import ExitStatus, StoreError, SystemdError, TorchparError
from torchpar.contract.fallback import MOST_TRIES, Fallback, Fallen, make_fallback_json, say_manifest
from torchpar.contract.given import Given, kept_folder, read_given
from torchpar.contract.journal import Priority, Tell
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
    are, the services that have failed, whether each change of the host is to be followed, and whether another torchpar
    kept out the one that was to make a generation."""

    generation: int
    made_for: Mapping[str, str]
    host: Mapping[str, str]
    failed: tuple[Failed, ...] = ()
    follow: bool = False
    busy: bool = False


@dataclass(frozen=True)
class Step:
    """A step: what is kept of it (None: nothing), the units to start, whether a generation is to be made, what is told
    of which unit ("" for the host), and what is kept until systemd has been asked for that."""

    fallback: Fallback | None
    start: tuple[str, ...] = ()
    recompile: bool = False
    told: tuple[tuple[str, str], ...] = ()
    before: Fallback | None = None


def take_step(fallback: Fallback | None, seen: Seen) -> Step:
    """Decides what to do about services that could not be placed, and about a host that is another one now."""
    before = fallback.before if fallback else seen.made_for
    known = {one.unit: one for one in fallback.units} if fallback else {}
    due = set(fallback.due) if fallback else set()
    changed = bool(fallback and fallback.host != seen.host)
    if changed:
        # What could not run on the host before may run on this one.
        known = {unit: dataclasses.replace(one, tries=0) for unit, one in known.items()}
        due = set(known)
    elif fallback and seen.busy:
        # A start that came without a new placement has tried nothing, and the next one would be without it as well.
        due |= {one.unit for one in seen.failed if one.unit in known and one.status is not None}
        kept = dataclasses.replace(fallback, due=tuple(sorted(due)))
        return Step(kept, recompile=True, before=kept)
    start: list[str] = []
    told: list[tuple[str, str]] = []
    for one in seen.failed:
        again = _count_try(one, known.get(one.unit), due=one.unit in due)
        if again:
            known[one.unit] = again
            start.append(one.unit)
            told.append((one.unit, _say_again(one, without=again.is_without)))
    fits = seen.made_for == seen.host
    asked = fallback.asked if fallback and not changed else None
    new_host = not fits and (seen.follow or fallback is not None) and asked != seen.generation
    if new_host and not start:
        told.append(("", f"this host has {say_manifest(seen.host, seen.made_for)} now: its services are placed anew"))
    recompile = new_host or bool(start)
    if not recompile and not known and fallback is None:
        # Whoever is to be told of the host is told by the watch.
        return Step(None)
    asked = seen.generation if recompile or asked is None else asked
    kept = Fallback(before, seen.host, asked, tuple(known.values()))
    is_over = fits and (not known or (seen.host == before and not any(one.tries for one in known.values())))
    still_to_ask = dataclasses.replace(kept, asked=0, due=tuple(start))
    return Step(None if is_over else kept, tuple(start), recompile, tuple(told), still_to_ask)


def _count_try(failed: Failed, last: Fallen | None, *, due: bool) -> Fallen | None:
    """Counts another start of a service that has failed; one that is `due` is counted. None where there is none."""
    if failed.status is None:
        return None
    if last and due:
        return dataclasses.replace(last, invocation=failed.invocation)
    tries = last.tries if last else 0
    is_new = last is None or last.invocation != failed.invocation
    if not failed.is_recent or not is_new or tries >= MOST_TRIES:
        return None
    return Fallen(failed.unit, failed.status, failed.invocation, tries + 1)


def _say_again(failed: Failed, *, without: bool) -> str:
    how = "without that" if without else "with a placement for this host as it is"
    return f"{failed.unit} could not start: {failed.why}; it is started again {how}"


def _read_failed(unit: str, properties: Mapping[str, Any]) -> Failed:
    since = properties.get("InactiveEnterTimestampMonotonic")
    is_recent = not since or time.monotonic() - since / 1e6 < _RECENT_SECONDS
    invocation = bytes(properties.get("InvocationID", ())).hex()
    return Failed(unit, invocation, why_failed(properties), misplaced_by(properties), is_recent)


def _keep_declared(fallback: Fallback | None, content: Content) -> Fallback | None:
    """Forgets services that have left the conf. One that does not fit this host has a drop-in too, which refuses it."""
    declared = {path.partition(".d/")[0] for path in content.files}
    units = tuple(one for one in fallback.units if one.unit in declared) if fallback else ()
    return fallback and dataclasses.replace(fallback, units=units)


class Ladder:
    """Takes the steps; `path` keeps what has been done, also when torchpard is killed, and `given` is the arbiter's."""

    def __init__(
        self,
        store: Store,
        systemd: Systemd,
        doors: Doors,
        tell: Tell,
        *,
        path: str = FALLBACK,
        given: str = GIVEN,
    ) -> None:
        self._store, self._systemd, self._doors, self._tell = store, systemd, doors, tell
        self._path, self._given = path, given
        self._problems: list[str] = []
        # CPUs or memory nodes have come or gone, and no look has seen to the threads since.
        self.host_changed = False

    # ---- in the child ----

    def look(self, write: Write) -> None:
        """Takes a step where one is due, puts threads back that the kernel has moved, and writes what is told of it."""
        told: list[tuple[str, str]] = []
        problems: list[str] = []
        try:
            active = self._store.active()
            if active:
                content = active.read()
                fallback = _keep_declared(read_fallback(self._path), content)
                seen = self._see(active.number, content)
                try:
                    told += self._take_step(fallback, seen)
                except (SystemdError, OSError) as error:
                    problems.append(f"services that could not be placed are not started: {error}")
                follows = seen.follow or fallback is not None
                # At other times somebody has moved them, and whoever verifies hears of it.
                if follows or self.host_changed:
                    problems += self._put_back(content, self._store.previous(active) if follows else None)
        except TorchparError:
            pass  # the watch says so
        except OSError as error:
            problems.append(f"what has failed, and what runs elsewhere than planned, is not seen: {error}")
        write(json.dumps({"told": told, "problems": problems}).encode() + b"\n")

    def _take_step(self, before: Fallback | None, seen: Seen) -> Sequence[tuple[str, str]]:
        step = take_step(before, seen)
        if step.recompile and step.before:
            # The new placement is made by what is written, and whoever is killed before it is asked for asks later.
            self._write(step.before)
            # Each start is a transaction of its own, and After= holds among the jobs that wait: a service comes last.
            self._systemd.start_without_waiting([RECOMPILE, *step.start])
        if step.fallback:
            if step.recompile or step.fallback != before:
                self._write(step.fallback)
        elif before or step.recompile:
            os.unlink(self._path)
        return step.told

    def _write(self, fallback: Fallback) -> None:
        temporary = f"{self._path}.new"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(make_fallback_json(fallback))
        os.replace(temporary, self._path)

    def _see(self, generation: int, content: Content) -> Seen:
        host = dict(self._doors.read_manifest())
        declared = {service.unit for service in content.services()}
        failed = []
        for unit in self._systemd.failed_services():
            if unit in declared:
                properties = self._systemd.unit_properties(unit)
                # One that waits for its start is in its failed state until then; one that is masked has none.
                if not properties.get("Job", (0,))[0] and properties.get("LoadState") != "masked":
                    failed.append(_read_failed(unit, properties))
        follow = False
        if host != content.manifest:
            config = parse_config(content.conf, self._doors.read_facts())
            follow = config.host.hotplug is Hotplug.FOLLOW
        last = self._systemd.unit_properties(RECOMPILE)
        busy = last.get("ActiveState") == "failed" and last.get("ExecMainStatus") == ExitStatus.BUSY
        return Seen(generation, content.manifest, host, tuple(failed), follow, busy)

    def _put_back(self, content: Content, previous: Generation | None) -> list[str]:
        """Moves threads that are elsewhere than they may be; returns why those of a service cannot be.

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
        problems = []
        for service in (service for service in content.services() if service.unit in running):
            try:
                self._put_service_back(service, running[service.unit], before.get(service.unit))
            except OSError as error:
                problems.append(f"{service.unit}: threads that are elsewhere than planned cannot be moved: {error}")
        return problems

    def _put_service_back(self, service: ServiceRecord, state: RunningState, had: ServiceRecord | None) -> None:
        given, kept = (self._read_given(state, folder) for folder in (self._given, kept_folder(self._given)))
        if had and kept and not given and len(had.ranks) == len(service.ranks):
            # It is noted anew, with the plan in force. The arbiter may have removed it meanwhile.
            with contextlib.suppress(FileNotFoundError):
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
        """Tells what a look has done, and what it could not do: once, until it can."""
        if not lines:
            return
        said = json.loads(lines[0])
        self.host_changed = self.host_changed and bool(said["problems"])
        for unit, text in said["told"]:
            fields = {"TORCHPAR_UNIT": unit, "OBJECT_SYSTEMD_UNIT": unit} if unit else {}
            self._tell(Priority.WARNING, text, fields)
        for problem in said["problems"]:
            if problem not in self._problems:
                self._tell(Priority.WARNING, problem, {})
        self._problems = said["problems"]
