"""Divides the CPUs of the services that run, moves them, and tells the one that starts its part before it begins.

A look at what runs, what is planned and what was given is taken in a child process, as all looks are; see look.py. What
was given is in a file for each service, which whoever comes after a torchpard that was killed finds there. What an
owner needs again is taken back from others by those files alone, before all else.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torchpar.arbitration.divide import Part, Tenant, divide
from torchpar.arbitration.lending import lend, take_back
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import StoreError, SystemdError, TorchparError
from torchpar.contract.given import Given, GivenRank, kept_folder, read_given
from torchpar.contract.journal import Priority, Tell
from torchpar.contract.paths import GIVEN
from torchpar.contract.unit_names import shorten
from torchpar.daemon.given_files import note_kept, prepare, read_loans, read_run, write_given
from torchpar.daemon.look import Write
from torchpar.daemon.moves import describe, make_move, name_units, say
from torchpar.daemon.tenants import as_started, ranks_of, read_ad_hoc_jobs, read_declared
from torchpar.facts.topology import HostFacts
from torchpar.generations.store import Store
from torchpar.host.affinity import SECONDS, UnitMove
from torchpar.host.systemd import RunningState


class Systemd(Protocol):
    """The door to systemd, as much of it as an arbiter needs. Everything raises SystemdError."""

    def running_units(self) -> tuple[RunningState, ...]:
        """Reads the services and ad-hoc jobs that run, or whose start or end is under way."""

    def restarting_units(self) -> tuple[str, ...]:
        """Lists the units that have ended and that systemd starts again by itself (Restart=)."""

    def root_group(self) -> str:
        """Reads the path of the control group that all units are in."""

    def unit_properties(self, unit: str) -> dict[str, Any]:
        """Reads all D-Bus properties of a unit."""


@dataclass(frozen=True)
class Doors:
    """The doors of an arbiter to the host: its facts, the threads of a unit (within seconds), where a group is.

    A service that lends may say that it is idle (by its unit); `read_cpuset` gives what a control group allows, if it
    limits anything.
    """

    read_facts: Callable[[], HostFacts]
    move_unit: Callable[[UnitMove, float], int]
    find_group: Callable[[str], str | None]
    is_idle: Callable[[str], bool] = lambda unit: False
    read_cpuset: Callable[[str], CpuSet | None] = lambda control_group: None


# Of those that a service was given one after the other; a thread that had an older one keeps it.
_MOST_SETS = 256

# Who needed its CPUs again is not idle for so long, as a server is not after a request: a service that says so all the
# time has them lent no more often.
_BUSY_SECONDS = 10.0

# For the threads of those that give back what an owner needs, which waits for two seconds.
_BACK_SECONDS = 1.0


@dataclass
class _Found:
    """Keeps what a look finds and does: where control groups are, lines for the journal, services moved, failures, and
    the number of threads that are elsewhere now.

    `owners` are the units whose CPUs are lent, and `lending` those of them that run, by what was given; `idle` those of
    the running `lenders` that say that they are idle. `is_divided`: it has come to its end.
    """

    root: str | None = None
    is_divided: bool = False
    owners: list[str] = field(default_factory=list)
    lending: list[str] = field(default_factory=list)
    lenders: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    moved: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    threads: int = 0


class Arbiter:
    """Gives services their CPUs; `folder` has a file for each, and `moved` what status says of them."""

    def __init__(self, store: Store, systemd: Systemd, doors: Doors, tell: Tell, *, folder: str = GIVEN) -> None:
        self.root: str | None = None
        self.moved: list[dict[str, Any]] = []
        self.owners: frozenset[str] = frozenset()
        # Owners that need their CPUs again, for the child that takes them back.
        self.awake: frozenset[str] = frozenset()
        self._busy_until: dict[str, float] = {}
        self._lending: frozenset[str] = frozenset()
        self._lenders: list[str] = []
        self._idle: list[str] = []
        self._store, self._systemd, self._doors, self._tell, self._folder = store, systemd, doors, tell, folder
        # What was told of the last look and of the last taking back.
        self._problems: dict[str, list[str]] = {}

    # ---- in the child ----

    def look(self, write: Write) -> None:
        """Divides, moves, and writes what came of it as a line of JSON."""
        found = _Found()
        try:
            init = self._doors.find_group(f"{self._systemd.root_group()}/init.scope")
            found.root = init and os.path.dirname(init)
            os.makedirs(self._folder, exist_ok=True)
            self._arbitrate(found)
        except (StoreError, SystemdError):
            # The watch says so, and nothing has changed.
            return
        except (TorchparError, OSError, ValueError) as error:
            # A ValueError: the plan in force has what no plan has.
            found.problems.append(f"the CPUs of what runs are not divided: {error}")
        with contextlib.suppress(OSError):
            # Also where nothing could be divided: they are to be taken back all the same.
            found.owners, found.lending = read_loans(self._folder)
        write(json.dumps(vars(found)).encode() + b"\n")

    def _arbitrate(self, found: _Found) -> None:
        facts = self._doors.read_facts()
        tenants = read_declared(self._store, facts)
        running = {state.unit: state for state in self._systemd.running_units()}
        tenants |= read_ad_hoc_jobs(self._systemd.unit_properties, running)
        note_kept(tenants, running, self._folder)
        for unit, state in running.items():
            started = read_run(state, self._folder) or read_run(state, kept_folder(self._folder))
            if started and unit in tenants:
                tenants[unit] = as_started(tenants[unit], started)
            elif started:
                # It has left the conf, and computes on.
                tenants[unit] = Tenant(unit, ranks_of(started), keeps=True, stays=True)
            if unit in tenants:
                tenants[unit] = self._see_lending(tenants[unit], state)
        here = [tenants[unit] for unit in running if unit in tenants]
        stopped = [tenants[unit] for unit in set(tenants) - set(running)]
        # Who fails again and again needs its CPUs each time.
        restarting = self._systemd.restarting_units() if any(tenant.lends for tenant in stopped) else ()
        owners = [replace(tenant, lends=tenant.lends and tenant.unit not in restarting) for tenant in stopped]
        parts = lend(here, owners, divide(here, facts), facts)
        for unit in set(os.listdir(self._folder)) - set(running):
            if unit not in tenants or not tenants[unit].waits:
                os.unlink(os.path.join(self._folder, unit))
        self._hand_back(parts, running, found)
        loans = [loan for part in parts.values() for loan in part.loans]
        moves: list[Given] = []
        # Nobody is moved before all have been told: one that starts waits for its word, and a job can make a move last.
        for unit, state in sorted(running.items()):
            part = parts.get(unit)
            planned = tuple(GivenRank(rank.cpus, rank.threads) for rank in tenants[unit].ranks) if part else ()
            given = self._give(state, part, planned, found)
            if given and given.is_moved:
                moves.append(given)
            if given and (given.is_moved or given.lent_to):
                lent = CpuSet.union(loan.cpus for loan in loans if loan.unit == unit)
                found.moved.append(describe(given, lent))
        for tenant in stopped:
            if tenant.waits:
                prepare(tenant, self._folder)
        self._move_all(moves, found)
        found.lenders += [tenant.unit for tenant in here if tenant.lends]
        found.idle += [tenant.unit for tenant in here if tenant.idle]
        # Who has had a request meanwhile has not been heard: nobody listened before.
        self._take_back(frozenset(unit for unit in found.idle if not self._doors.is_idle(unit)), found)
        found.is_divided = True

    def _see_lending(self, tenant: Tenant, state: RunningState) -> Tenant:
        """Returns a service that runs with what it says of itself, and what its control group allows."""
        cpuset = self._doors.read_cpuset(state.control_group) if tenant.borrows else None
        allowed = tenant.allowed if cpuset is None else tenant.allowed & cpuset
        return replace(tenant, idle=tenant.lends and self._is_idle(tenant.unit), allowed=allowed)

    def _hand_back(self, parts: Mapping[str, Part], running: Mapping[str, RunningState], found: _Found) -> None:
        """Takes the CPUs away that services are no longer lent, before anybody is told that it has them."""
        moves = []
        for unit, state in running.items():
            before = read_run(state, self._folder)
            kept = CpuSet.union(rank.cpus for rank in parts[unit].ranks) if unit in parts else CpuSet()
            gone = frozenset(loan.unit for loan in before.loans if not loan.cpus <= kept) if before else ()
            if before and gone:
                moves.append(self._write_change(take_back(before, gone), before, found))
        self._move_all(moves, found, _BACK_SECONDS)

    def take_back(self, write: Write) -> None:
        """Takes the CPUs of owners that are `awake` back from others, in the child, which asks nobody for anything."""
        found = _Found()
        try:
            self._take_back(self.awake, found)
        except (OSError, ValueError) as error:
            found.problems.append(f"what {name_units(sorted(self.awake))} has lent is not back: {error}")
        write(json.dumps(vars(found)).encode() + b"\n")

    def _take_back(self, owners: Collection[str], found: _Found) -> None:
        moves = []
        for unit in sorted(os.listdir(self._folder)) if owners else ():
            before = read_given(unit, self._folder)
            if before is None or not before.invocation:
                continue
            given = take_back(before, owners)
            if given.loans != before.loans:
                moves.append(self._write_change(given, before, found))
            elif unit in owners and before.lent_to:
                write_given(replace(before, lent_to=""), self._folder)
        self._move_all(moves, found, _BACK_SECONDS)

    def _give(
        self, state: RunningState, part: Part | None, planned: tuple[GivenRank, ...], found: _Found
    ) -> Given | None:
        """Writes what a service has from now on, and a line for the journal where that has changed; returns it.

        One that has been moved and is to keep its CPUs from now on, or has left the conf, gets them back; of any other
        without a part there is nothing to write.
        """
        before = read_run(state, self._folder)
        if not part and not (before and (before.is_moved or before.lent_to)):
            return None
        if before:
            # Those that it was started with.
            planned = before.planned
        ranks = part.ranks if part and len(part.ranks) == len(planned) else planned
        fits = part is not None and ranks == part.ranks
        own, loans = (part.own, part.loans) if part and fits else ((), ())
        why = name_units(part.beside) if part and part.beside and (own or ranks) != planned else ""
        lent_to = name_units(part.lent_to) if part else ""
        if before and (before.ranks, before.why, before.own, before.loans, before.lent_to) == (
            ranks, why, own, loans, lent_to
        ):  # fmt: skip
            return before
        given = Given(state.unit, state.invocation, ranks, planned, time.time(), why, (), state.control_group)
        return self._write_change(replace(given, own=own, loans=loans, lent_to=lent_to), before, found)

    def _write_change(self, given: Given, before: Given | None, found: _Found) -> Given:
        """Writes what a service has from now on, with what it had `before`, and a line for the journal; returns it."""
        had, since = before.had if before else (), time.time()
        if before and before.ranks != given.ranks:
            sets = (*had, before.cpus, *(rank.cpus for rank in before.ranks))
            had = tuple(dict.fromkeys(sets))[-_MOST_SETS:]
        elif before:
            since = before.since
        given = replace(given, had=had, since=since)
        write_given(given, self._folder)
        if given.is_moved:
            found.told += say(given, before)
        return given

    def _move_all(self, moves: Sequence[Given], found: _Found, most: float = SECONDS) -> None:
        """Moves the threads of services, or says why that is not possible; none has more than its part of the time."""
        until = time.monotonic() + most
        for number, given in enumerate(moves):
            if not given.control_group:
                continue
            seconds = max(0.0, until - time.monotonic()) / (len(moves) - number)
            try:
                found.threads += self._doors.move_unit(make_move(given), seconds)
            except OSError as error:
                found.problems.append(f"{shorten(given.unit)} cannot be moved to CPUs {given.cpus}: {error.strerror}")

    # ---- in the daemon ----

    def take(self, lines: Sequence[bytes]) -> bool:
        """Keeps what a look has found, and tells what is new of it; says whether any thread is elsewhere now."""
        if not lines:
            return False
        said = json.loads(lines[0])
        self.root = said["root"] or self.root
        if said["is_divided"]:
            self.moved, self._lenders, self._idle = said["moved"], said["lenders"], said["idle"]
        self.owners, self._lending = frozenset(said["owners"]), frozenset(said["lending"])
        self.awake &= self.owners
        return self._say("look", said)

    def took_back(self, lines: Sequence[bytes]) -> bool:
        """Tells what a child has taken back, and says the same; a look that comes after it sees the rest."""
        return bool(lines) and self._say("back", json.loads(lines[0]))

    def has_idle_changed(self) -> bool:
        """Says whether a service that lends has become idle since the last look, or is no longer."""
        return [unit for unit in self._lenders if self._is_idle(unit)] != self._idle

    def idle_owners(self) -> frozenset[str]:
        """Returns the services that run and whose CPUs are lent as they are idle."""
        return self.owners & self._lending

    def awake_owners(self) -> frozenset[str]:
        """Returns those of them that are idle no longer."""
        return frozenset(unit for unit in self.idle_owners() if not self._doors.is_idle(unit))

    def wake(self, owners: Collection[str]) -> None:
        """Has what these owners need taken back by the next child that does so; who was idle is not so for a while."""
        self.awake |= frozenset(owners)
        self._busy_until |= dict.fromkeys(self._lending & frozenset(owners), time.monotonic() + _BUSY_SECONDS)

    def _is_idle(self, unit: str) -> bool:
        return time.monotonic() >= self._busy_until.get(unit, 0.0) and self._doors.is_idle(unit)

    def _say(self, kind: str, said: Mapping[str, Any]) -> bool:
        for line in said["told"]:
            self._tell(Priority.INFO, line, {})
        for problem in said["problems"]:
            if problem not in self._problems.get(kind, ()):
                self._tell(Priority.WARNING, problem, {})
        self._problems[kind] = said["problems"]
        return bool(said["threads"])

    def give_back(self) -> None:
        """Gives every service all of its planned CPUs: without torchpard nobody else would.

        It asks nobody: whatever this process would start, systemd ends, as it ends all processes of the service.
        """
        found = _Found()
        try:
            moves: list[Given] = []
            for unit in os.listdir(self._folder):
                before = read_given(unit, self._folder)
                if before and before.invocation:
                    state = RunningState(unit, before.invocation, 0, before.control_group)
                    given = self._give(state, None, (), found)
                    if given:
                        moves.append(given)
            self._move_all(moves, found)
        except OSError as error:
            found.problems.append(f"services may stay on fewer CPUs than planned: {error}")
        for problem in found.problems:
            self._tell(Priority.WARNING, problem, {})
