"""Puts what was compiled in force, and restarts what is to have it at once. Callers hold the store's lock."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from torchpar.contract.errors import StoreError, TorchparError
from torchpar.generations import transition
from torchpar.generations.compile import Compiled
from torchpar.generations.drift import find_generation_drift
from torchpar.generations.enforce import is_in_force, read_active
from torchpar.generations.generation import Content, Generation
from torchpar.generations.restart import Services
from torchpar.generations.restart import restart as restart_services
from torchpar.generations.store import Store
from torchpar.generations.transition import Outcome, hold, prune, put_new_in_force
from torchpar.generations.unconfirmed import Unconfirmed, begin
from torchpar.host.clocks import read_clocks
from torchpar.units.changes import Change, compare, compare_links

NOTHING = Content({}, {}, "", (), {})


class Restart(enum.Enum):
    """The running services that are restarted, of those that changed."""

    NEVER = "never"
    IF_CHANGED = "if-changed"
    WHEN_IDLE = "when-idle"  # only those that use no CPU now


class Idleness(Protocol):
    """The door to what running services do."""

    def is_idle(self, unit: str) -> bool:
        """Says whether a running unit uses no CPU now. Raises SystemdError."""


class Systemd(transition.Systemd, Services, Idleness, Protocol):
    """The door to systemd, as much of it as an apply needs. Everything raises SystemdError."""

    def find_passed_over(self, compiled: Compiled) -> tuple[str, ...]:
        """Finds lines of new units that systemd would pass over. Raises ConfigError for units that it would refuse."""

    def find_unloaded(self, content: Content) -> str | None:
        """Finds the first unit that systemd has not read as it is in a generation."""

    def running_among(self, units: Iterable[str]) -> tuple[str, ...]:
        """Returns those of the units that run now: they have the values that were in force when they started."""

    def forget_refusals(self) -> None:
        """Has systemd forget which guards have refused a start."""


@dataclass(frozen=True)
class Applied:
    """The result of an apply. `outdated` run with their old values; `warnings` is all that it has warned of."""

    generation: Generation
    changes: tuple[Change, ...]
    outdated: tuple[str, ...]
    restarted: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """The way in which something is put in force.

    `confirm_within` is in seconds; with `at_boot` starts of services wait for it. `outdated` are units that run with
    older settings already, of a change before this one.
    """

    restart: Restart = Restart.NEVER
    confirm_within: int | None = None
    at_boot: bool = False
    outdated: tuple[str, ...] = ()


def find_changes(active: tuple[Generation, Content] | None, compiled: Compiled) -> tuple[Change, ...]:
    """Compares the generation in force with what was compiled."""
    before, after = active[1] if active else NOTHING, compiled.content
    return compare(before.files, after.files) + compare_links(before.links, after.links)


def apply(
    store: Store, systemd: Systemd, compiled: Compiled, request: Request, warn: Callable[[Iterable[str]], None]
) -> Applied:
    """Writes a generation and puts it in force, or brings the active one that is the same to its end.

    `warn` is told of each thing once it is known. Raises StoreError, SystemdError, ConfigError and TorchparError, each
    with what is true after it.
    """
    warnings: list[str] = []

    def tell(lines: Iterable[str]) -> None:
        new = tuple(lines)
        warnings.extend(new)
        warn(new)

    active = read_active(store)
    changes = find_changes(active, compiled)
    tell(compiled.warnings)
    done = _put_in_force(store, systemd, active, compiled, request, tell)
    tell((*done.notes, *prune(store)))
    waits = _say_what_waits(store, done.generation)
    but = "" if request.restart is Restart.NEVER else "no service was restarted"
    with is_in_force(done.generation, but, waits):
        changed = {change.unit for change in changes if change.what in ("changed", "removed")}
        if not request.at_boot:
            # All files were looked at just now; else a refusal would be told until the next start.
            systemd.forget_refusals()
        running = systemd.running_among(sorted({*changed, *request.outdated}))
        restarted = tuple(unit for unit in running if is_chosen(unit, request.restart, systemd))
        _remember(store, done.generation, restarted)
    with is_in_force(done.generation, waits=waits):
        restart_services(systemd, restarted)
    outdated = tuple(unit for unit in running if unit not in restarted)
    return Applied(done.generation, changes, outdated, restarted, tuple(warnings))


def _put_in_force(
    store: Store,
    systemd: Systemd,
    active: tuple[Generation, Content] | None,
    compiled: Compiled,
    request: Request,
    warn: Callable[[Iterable[str]], None],
) -> Outcome:
    same = active is not None and active[1] == compiled.content
    drift = find_generation_drift(*active) if active else ()
    warn(f"{line}; generation {active[0].number} is replaced" for line in drift if active)
    if active and same and not drift:
        return hold(store, systemd, active[0], loaded=not systemd.find_unloaded(active[1]))
    # What was in force may have lines that systemd passes over, and did when it was applied.
    if not request.at_boot:
        warn(systemd.find_passed_over(compiled))
    # Last, so that the time begins when it is about to be in force.
    carry = request.at_boot or same
    unconfirmed = _way_back(store, active[0] if active else None, request.confirm_within, warn, carry=carry)
    return put_new_in_force(store, systemd, compiled.content, unconfirmed)


def _remember(store: Store, generation: Generation, restarted: tuple[str, ...]) -> None:
    """Keeps with a generation that waits for its confirmation which services are restarted for it."""
    if not restarted:
        return
    try:
        if waits := store.unconfirmed(generation):
            units = tuple(sorted({*waits.restarted, *restarted}))
            store.amend(generation, dataclasses.replace(waits, restarted=units))
    except StoreError as error:
        told = f"generation {generation.number} is in force, but no service was restarted"
        raise StoreError(f"{error}\n{told}") from None


def _say_what_waits(store: Store, generation: Generation) -> str:
    """Says what comes back unless a generation is confirmed; "" where nothing does."""
    with contextlib.suppress(StoreError):
        if waits := store.unconfirmed(generation):
            left = waits.seconds_left(read_clocks())
            return f"generation {waits.back} comes back in {left:.0f} s unless you run: torchpar confirm"
    return ""


def is_chosen(unit: str, restart: Restart, systemd: Idleness) -> bool:
    """Says whether a unit that runs with older settings is restarted. Raises SystemdError."""
    return restart is Restart.IF_CHANGED or (restart is Restart.WHEN_IDLE and systemd.is_idle(unit))


def _way_back(
    store: Store,
    active: Generation | None,
    confirm_within: int | None,
    warn: Callable[[Iterable[str]], None],
    *,
    carry: bool,
) -> Unconfirmed | None:
    """Returns what comes back unless what is applied now is confirmed.

    A generation that waits for that already can only be made anew, for this host as it is now or because it is damaged,
    and then waits as long as it did.
    """
    waits = None
    with contextlib.suppress(StoreError):
        # One that is damaged, too, and so not `active`.
        waiting = store.active()
        try:
            waits = store.unconfirmed(waiting) if waiting else None
        except StoreError as error:
            # A boot goes on without it.
            if not carry:
                raise TorchparError(f"{error}; nothing has changed") from None
            warn([str(error)])
    if waits and carry:
        return waits
    if waits and waiting:
        left = waits.seconds_left(read_clocks())
        raise TorchparError(
            f"generation {waiting.number} still waits for its confirmation, for {left:.0f} s; first: torchpar confirm, "
            "or torchpar rollback; nothing has changed"
        )
    if not confirm_within or carry:
        return None
    if active is None:
        raise TorchparError("--confirm-within: there is no generation to go back to yet; apply once without it")
    return begin(active.number, confirm_within, read_clocks())
