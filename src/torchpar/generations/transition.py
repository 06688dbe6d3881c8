"""Goes from one generation in force to another, and says what is true wherever that ends.

    prepared   the new generation is whole on the disk; nothing has changed
       |       the flip of `active`, one rename: the commit point
    flipped    the next daemon-reload loads the new generation; systemd has the old one
       |       daemon-reload
    loaded     systemd has read the new generation
       |       reading back what it holds
    verified   the new generation is in force

Up to the flip a failure takes the prepared generation away again. After it nothing is undone by deleting: where systemd
does not take the new generation, going back is a flip of its own, to the old one, which can fail as well. Every error
ends with what is true after it. Callers hold the store's lock.
"""

from __future__ import annotations

import contextlib
import enum
from dataclasses import dataclass
from typing import Protocol

from torchpar.contract.errors import StoreError, SystemdError, TorchparError
from torchpar.generations.generation import Content, Generation
from torchpar.generations.store import KEPT, Store
from torchpar.generations.unconfirmed import Unconfirmed


class Stage(enum.Enum):
    """The steps of a transition that are done."""

    PREPARED = "prepared"
    FLIPPED = "flipped"
    LOADED = "loaded"
    VERIFIED = "verified"


class Systemd(Protocol):
    """The door to systemd, as much of it as this needs. Everything raises SystemdError."""

    def reload(self) -> None:
        """Has the generator run and all units read again."""

    def check(self, generation: Generation) -> tuple[str, ...]:
        """Raises SystemdError unless systemd holds this generation; returns notes on what others override."""

    def start_way_back(self) -> None:
        """Starts what goes back in time unless the generation is confirmed."""


@dataclass(frozen=True)
class Outcome:
    """A generation that is in force, and notes for a person."""

    generation: Generation
    notes: tuple[str, ...]


def put_new_in_force(
    store: Store, systemd: Systemd, content: Content, unconfirmed: Unconfirmed | None = None
) -> Outcome:
    """Writes a generation and puts it in force. Raises StoreError and SystemdError."""
    try:
        generation = store.write(content, unconfirmed)
    except StoreError as error:
        raise StoreError(f"{error}; nothing has changed") from None
    try:
        if unconfirmed:
            # Before the flip, so that the way back is there whatever happens to this process.
            systemd.start_way_back()
    except SystemdError as error:
        with contextlib.suppress(StoreError):
            store.discard(generation)
        raise SystemdError(f"{error}; nothing has changed") from None
    return _Transition(store, systemd, generation, is_new=True).run()


def put_old_in_force(store: Store, systemd: Systemd, generation: Generation) -> Outcome:
    """Puts a generation in force that was so before. Raises StoreError and SystemdError."""
    return _Transition(store, systemd, generation, is_new=False).run()


def hold(store: Store, systemd: Systemd, generation: Generation, *, loaded: bool) -> Outcome:
    """Brings to its end what put the active generation in force: another command may have been killed, or failed, half
    way. `loaded`: systemd has read its units. Raises StoreError and SystemdError."""
    unsure = _sync(store)
    try:
        notes = _reload_unless_held(systemd, generation, loaded=loaded)
    except SystemdError as error:
        raise SystemdError(
            f"{error}\ngeneration {generation.number} is active in the store, as it was, and systemd holds something "
            "else; once that is mended: torchpar apply"
        ) from None
    if unsure:
        raise StoreError(_unsure(unsure, generation, None, "torchpar apply"))
    return Outcome(generation, notes)


def confirm(store: Store) -> Generation:
    """Keeps the generation that waits for its confirmation. Raises StoreError."""
    active = store.active()
    if active is None or not _waits(store, active):
        raise StoreError("there is nothing to confirm: no apply waits for it")
    try:
        store.settle(active)
    except StoreError as error:
        if _waits(store, active):
            raise StoreError(f"{error}; generation {active.number} is not confirmed, and goes in time") from None
        raise StoreError(
            f"{error}; generation {active.number} is confirmed, but the disk may not know it: after a loss of power it "
            "may go; once the disk is mended: torchpar apply"
        ) from None
    return active


def prune(store: Store, keep: int = KEPT) -> tuple[str, ...]:
    """Removes the generations that are too old to be kept; returns what to warn of."""
    try:
        store.prune(keep)
    except StoreError as error:
        return (f"generations that are no longer kept are still there: {error}",)
    return ()


class _Transition:
    """One flip and what follows it, with the stage that it has reached."""

    def __init__(self, store: Store, systemd: Systemd, new: Generation, *, is_new: bool) -> None:
        self._store = store
        self._systemd = systemd
        self._new = new
        self._is_new = is_new
        self._stage = Stage.PREPARED
        self._old: Generation | None = None

    def run(self) -> Outcome:
        """Goes all the way, or as far as it goes and back."""
        # One that is damaged, too: the generator copies what is left of it, which is better than nothing.
        with contextlib.suppress(StoreError):
            self._old = self._store.active()
        try:
            self._store.activate(self._new)
        except StoreError as error:
            self._discard()
            raise StoreError(f"{error}; nothing has changed") from None
        self._stage = Stage.FLIPPED
        try:
            unsure = _sync(self._store)
            self._systemd.reload()
            self._stage = Stage.LOADED
            notes = self._systemd.check(self._new)
        except TorchparError as error:
            raise type(error)(f"{error}\n{self._go_back()}") from None
        except KeyboardInterrupt:
            raise StoreError(
                f"interrupted; generation {self._new.number} is active in the store, and systemd may not hold it yet; "
                f"to go on: {self._again}"
            ) from None
        except Exception as bug:
            # It has its traceback; what is in force has not to wait until it is mended.
            bug.add_note(self._go_back())
            raise
        self._stage = Stage.VERIFIED
        if unsure:
            raise StoreError(f"{_unsure(unsure, self._new, self._old, self._again)}{self._deadline()}")
        if self._old and self._old != self._new:
            # It counts no more, and the next command that changes the store would remove it.
            with contextlib.suppress(StoreError):
                self._store.settle(self._old)
        return Outcome(self._new, notes)

    @property
    def _again(self) -> str:
        """The command that has the new generation in force."""
        return "torchpar apply" if self._is_new else f"torchpar rollback {self._new.number}"

    def _go_back(self) -> str:
        """Flips to the old generation; returns what is true then."""
        new, old = self._new, self._old
        if old == new:
            return f"generation {new.number} is active in the store, as it was; once that is mended: {self._again}"
        try:
            if old:
                self._store.activate(old, refused=new if self._is_new else None)
            else:
                self._store.deactivate(new)
        except StoreError as error:
            held = "still has what it had" if self._stage is Stage.FLIPPED else "may hold a part of it"
            return (
                f"generation {new.number} stays active in the store, as going back failed, too ({error}); systemd "
                f"{held}; once that is mended: {self._again}"
            )
        unsure = _sync(self._store)
        try:
            why = self._reload_old()
        except Exception as bug:
            # The one that led here, again.
            why = f"{type(bug).__name__}: {bug}"
        if why:
            says = f"{_named(old)} is active in the store again, but systemd may hold something else ({why}); "
            says += f"once that is mended: {self._again}"
        else:
            says = f"{_named(old)} is in force, as before"
        if unsure:
            return f"{says}; but after a loss of power generation {new.number} may be ({unsure})"
        self._discard()
        return says

    def _reload_old(self) -> str:
        """Has systemd load the old generation; returns why it may hold something else."""
        refused = ""
        try:
            self._systemd.reload()
        except TorchparError as error:
            # Where it has refused the new one as well, it has never read that.
            refused = str(error) if self._stage is Stage.LOADED else ""
        if not self._old:
            return refused
        try:
            self._systemd.check(self._old)
        except TorchparError as error:
            return str(error)
        return ""

    def _deadline(self) -> str:
        with contextlib.suppress(StoreError):
            if waits := self._store.unconfirmed(self._new):
                return f"\ngeneration {waits.back} comes back in {waits.seconds} s unless you run: torchpar confirm"
        return ""

    def _discard(self) -> None:
        if self._is_new:
            # Else the next command that changes the store does it.
            with contextlib.suppress(StoreError):
                self._store.discard(self._new)


def _reload_unless_held(systemd: Systemd, generation: Generation, *, loaded: bool) -> tuple[str, ...]:
    if loaded:
        with contextlib.suppress(SystemdError):
            return systemd.check(generation)
    systemd.reload()
    return systemd.check(generation)


def _sync(store: Store) -> str:
    """Brings the flip to the disk; returns why that is not known to have happened."""
    try:
        store.sync()
    except StoreError as error:
        return str(error)
    return ""


def _unsure(why: str, generation: Generation, old: Generation | None, again: str) -> str:
    other = f"{_named(old)} may be" if old else "another or none may be"
    return (
        f"{why}; generation {generation.number} is in force, but after a loss of power {other}; once the disk is "
        f"mended: {again}"
    )


def _named(generation: Generation | None) -> str:
    return f"generation {generation.number}" if generation else "no generation"


def _waits(store: Store, generation: Generation) -> bool:
    try:
        return store.unconfirmed(generation) is not None
    except StoreError:
        # It is damaged, which confirming mends.
        return True
