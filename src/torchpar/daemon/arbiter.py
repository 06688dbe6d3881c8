"""Divides the CPUs of the services that run, moves them, and tells the one that starts its part before it begins.

A look at what runs, what is planned and what was given is taken in a child process, as all looks are; see look.py. What
was given is in a file for each service, which whoever comes after a torchpard that was killed finds there.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torchpar.arbitration.divide import Part, Tenant, divide
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import StoreError, SystemdError, TorchparError
from torchpar.contract.given import Given, GivenRank, make_given_json, read_given
from torchpar.contract.journal import Priority
from torchpar.contract.paths import GIVEN
from torchpar.contract.unit_names import shorten
from torchpar.daemon.look import Write
from torchpar.daemon.tenants import as_started, ranks_of, read_ad_hoc_jobs, read_declared
from torchpar.facts.topology import HostFacts
from torchpar.generations.store import Store
from torchpar.host.affinity import SECONDS, Move, UnitMove
from torchpar.host.systemd import RunningState


class Systemd(Protocol):
    """The door to systemd, as much of it as an arbiter needs. Everything raises SystemdError."""

    def running_units(self) -> tuple[RunningState, ...]:
        """Reads the services and ad-hoc jobs that run, or whose start or end is under way."""

    def root_group(self) -> str:
        """Reads the path of the control group that all units are in."""

    def unit_properties(self, unit: str) -> dict[str, Any]:
        """Reads all D-Bus properties of a unit."""


@dataclass(frozen=True)
class Doors:
    """The doors of an arbiter to the host: its facts, the threads of a unit (within seconds), where a group is."""

    read_facts: Callable[[], HostFacts]
    move_unit: Callable[[UnitMove, float], int]
    find_group: Callable[[str], str | None]


# Of those that a service was given one after the other; a thread that had an older one keeps it.
_MOST_SETS = 256


# Of those that share its CPUs.
_MOST_NAMES = 3


@dataclass
class _Found:
    """Keeps what a look finds and does: where control groups are, lines for the journal, services moved, failures."""

    root: str | None = None
    told: list[str] = field(default_factory=list)
    moved: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Arbiter:
    """Gives services their CPUs; `folder` has a file for each, and `moved` what status says of them."""

    def __init__(
        self,
        store: Store,
        systemd: Systemd,
        doors: Doors,
        tell: Callable[[Priority, str, Mapping[str, str]], None],
        *,
        folder: str = GIVEN,
    ) -> None:
        self.root: str | None = None
        self.moved: list[dict[str, Any]] = []
        self._store, self._systemd, self._doors, self._tell, self._folder = store, systemd, doors, tell, folder
        # Not in `folder`: who finds a file there at its start waits for torchpard.
        self._kept = f"{folder}-kept"
        self._problems: list[str] = []

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
        write(json.dumps(vars(found)).encode() + b"\n")

    def _arbitrate(self, found: _Found) -> None:
        facts = self._doors.read_facts()
        tenants = read_declared(self._store, facts)
        running = {state.unit: state for state in self._systemd.running_units()}
        tenants |= read_ad_hoc_jobs(self._systemd.unit_properties, running)
        self._note_kept(tenants, running)
        for unit, state in running.items():
            kept = self._read_given(state, self._kept)
            started = self._read_given(state) or kept
            if started and unit in tenants:
                tenants[unit] = as_started(tenants[unit], started)
            elif kept:
                # It has left the conf, and computes on.
                tenants[unit] = Tenant(unit, ranks_of(kept), keeps=True, stays=True)
        parts = divide((tenants[unit] for unit in running if unit in tenants), facts)
        for unit in set(os.listdir(self._folder)) - set(running):
            if unit not in tenants or tenants[unit].stays:
                os.unlink(os.path.join(self._folder, unit))
        moves: list[tuple[Given, RunningState]] = []
        # Nobody is moved before all have been told: one that starts waits for its word, and a job can make a move last.
        for unit, state in sorted(running.items()):
            part = parts.get(unit)
            planned = tuple(GivenRank(rank.cpus, rank.threads) for rank in tenants[unit].ranks) if part else ()
            given = self._give(state, part, planned, found)
            if given and given.is_moved:
                moves.append((given, state))
        for unit in set(tenants) - set(running):
            if not tenants[unit].stays:
                self._await(tenants[unit])
        found.moved += [_describe(given) for given, _ in moves]
        self._move_all(moves, found)

    def _note_kept(self, tenants: Mapping[str, Tenant], running: Mapping[str, RunningState]) -> None:
        """Notes with which CPUs each service runs that is never moved: a newer plan may say others before it ends."""
        os.makedirs(self._kept, exist_ok=True)
        for unit in set(os.listdir(self._kept)) - set(running):
            os.unlink(os.path.join(self._kept, unit))
        for unit, state in running.items():
            tenant = tenants.get(unit)
            if tenant and tenant.stays and not self._read_given(state, self._kept) and not self._read_given(state):
                ranks = tuple(GivenRank(rank.cpus, rank.threads) for rank in tenant.ranks)
                given = Given(unit, state.invocation, ranks, ranks, time.time(), control_group=state.control_group)
                self._write(given, self._kept)

    def _read_given(self, state: RunningState, folder: str | None = None) -> Given | None:
        """Reads what a service was given in this run of it; None where it waits for that."""
        given = read_given(state.unit, folder or self._folder)
        return given if given and given.invocation == state.invocation else None

    def _await(self, tenant: Tenant) -> None:
        """Leaves a file for a service that does not run: when it starts, it waits for its part."""
        before = read_given(tenant.unit, self._folder)
        planned = tuple(GivenRank(rank.cpus, rank.threads) for rank in tenant.ranks)
        if before is None or before.invocation or before.planned != planned:
            self._write(Given(tenant.unit, "", planned, planned, time.time()))

    def _give(
        self, state: RunningState, part: Part | None, planned: tuple[GivenRank, ...], found: _Found
    ) -> Given | None:
        """Writes what a service has from now on, and a line for the journal where that has changed; returns it.

        One that has been moved and is to keep its CPUs from now on, or has left the conf, gets them back; of any other
        without a part there is nothing to write.
        """
        before = self._read_given(state)
        if not part and not (before and before.is_moved):
            return None
        if before:
            # Those that it was started with.
            planned = before.planned
        ranks = part.ranks if part and len(part.ranks) == len(planned) else planned
        why = _name(part.beside) if part and ranks != planned else ""
        if before and (before.ranks, before.why) == (ranks, why):
            return before
        had = before.had if before else ()
        if before and before.ranks != ranks:
            sets = (*had, before.cpus, *(rank.cpus for rank in before.ranks))
            had = tuple(dict.fromkeys(sets))[-_MOST_SETS:]
        stays = before is not None and before.ranks == ranks
        since = before.since if before and stays else time.time()
        given = Given(state.unit, state.invocation, ranks, planned, since, why, had, state.control_group)
        self._write(given)
        if given.is_moved and not stays:
            found.told.append(_say(given))
        return given

    def _write(self, given: Given, folder: str | None = None) -> None:
        folder = folder or self._folder
        # With a dot first it is no unit's.
        temporary = os.path.join(folder, f".{os.getpid()}")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(make_given_json(given))
        os.replace(temporary, os.path.join(folder, given.unit))

    def _move_all(self, moves: Sequence[tuple[Given, RunningState]], found: _Found) -> None:
        """Moves the threads of services, or says why that is not possible; none has more than its part of the time."""
        until = time.monotonic() + SECONDS
        for number, (given, state) in enumerate(moves):
            if not state.control_group:
                continue
            seconds = max(0.0, until - time.monotonic()) / (len(moves) - number)
            try:
                self._doors.move_unit(_make_move(given, state), seconds)
            except OSError as error:
                found.problems.append(f"{shorten(given.unit)} cannot be moved to CPUs {given.cpus}: {error.strerror}")

    # ---- in the daemon ----

    def take(self, lines: Sequence[bytes]) -> None:
        """Keeps what a look has found, and tells what is new of it."""
        if not lines:
            return
        said = json.loads(lines[0])
        self.root = said["root"] or self.root
        self.moved = said["moved"]
        for line in said["told"]:
            self._tell(Priority.INFO, line, {})
        for problem in said["problems"]:
            if problem not in self._problems:
                self._tell(Priority.WARNING, problem, {})
        self._problems = said["problems"]

    def give_back(self) -> None:
        """Gives every service all of its planned CPUs: without torchpard nobody else would.

        It asks nobody: whatever this process would start, systemd ends, as it ends all processes of the service.
        """
        found = _Found()
        try:
            moves: list[tuple[Given, RunningState]] = []
            for unit in os.listdir(self._folder):
                before = read_given(unit, self._folder)
                if before and before.invocation:
                    state = RunningState(unit, before.invocation, 0, before.control_group)
                    given = self._give(state, None, (), found)
                    if given:
                        moves.append((given, state))
            self._move_all(moves, found)
        except OSError as error:
            found.problems.append(f"services may stay on fewer CPUs than planned: {error}")
        for problem in found.problems:
            self._tell(Priority.WARNING, problem, {})


def _name(units: Sequence[str]) -> str:
    """Names the first of the services, and says how many others there are: "train@a, train@b and 3 others"."""
    names = [shorten(unit) for unit in units[:_MOST_NAMES]]
    others = len(units) - len(names)
    if others:
        names.append("another" if others == 1 else f"{others} others")
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _make_move(given: Given, state: RunningState) -> UnitMove:
    known = {*given.had, given.planned_cpus, given.cpus, *(rank.cpus for rank in (*given.planned, *given.ranks))}
    counts = Counter(cpu for rank in given.planned for cpu in rank.cpus)
    ranks = tuple(
        Move(known, rank.cpus, CpuSet(cpu for cpu in planned.cpus if counts[cpu] == 1))
        for rank, planned in zip(given.ranks, given.planned, strict=True)
    )
    return UnitMove(given.unit, state.control_group, ranks, Move(known, given.cpus))


def _describe(given: Given) -> dict[str, Any]:
    """Says where a service is that has been moved in this run, since when and why."""
    return {
        "unit": given.unit,
        "cpus": str(given.cpus),
        "planned_cpus": str(given.planned_cpus),
        "threads": [rank.threads for rank in given.ranks],
        "beside": given.why,
        "since_timestamp_seconds": given.since,
    }


def _say(given: Given) -> str:
    name, cpus, planned = shorten(given.unit), given.cpus, given.planned_cpus
    if given.ranks == given.planned:
        return f"{name} has all of its CPUs {planned} again"
    return f"{name} has CPUs {cpus} of its {planned}, which it shares with {given.why}"
