"""The store: generations below one directory, the link to the active one, and what waits for its confirmation.

    active -> generations/5     the generation in force; one rename changes it
    generations/5/              a generation, see generation.py
    generations/5.unconfirmed   it goes unless it is confirmed, see unconfirmed.py
    .active.new -> ...          a generation that was prepared and is not yet in force; the same rename takes this away
    .active.back, .active.old, generations/.5.new
                                work that is not done

Kill the writer anywhere and the old or the new generation is whole; whoever next takes the lock removes the rest.
It is one module, since each of its calls rests on what the others leave after a kill.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from torchpar.contract.errors import BusyError, StoreError, printable
from torchpar.contract.paths import STORE
from torchpar.contract.typed_json import ShapeError
from torchpar.generations.generation import Content, Generation, write_tree
from torchpar.generations.unconfirmed import Unconfirmed, parse_unconfirmed
from torchpar.host.files import exchange, find_open, own_directory, remove, sync_directory, write_new
from torchpar.host.lock import locked_file
from torchpar.host.reading import NotReadableError, Reader

KEPT = 10

LITTER = re.compile(r"\.[0-9]+\.new")

_TARGET = re.compile(r"generations/([1-9][0-9]{0,17})")
_UNCONFIRMED = re.compile(r"([0-9]+)\.unconfirmed")


class Store:
    """The generations of this host, below one directory."""

    def __init__(self, directory: Path = Path(STORE)) -> None:
        self.directory = directory
        self.generations = directory / "generations"
        self.link = directory / "active"
        self.lock = directory / ".lock"
        self.prepared = directory / ".active.new"
        self._back = directory / ".active.back"
        self._old = directory / ".active.old"

    # ---- what is there ----

    def active(self) -> Generation | None:
        """Returns the generation in force; None if there is none yet. Raises StoreError if the link leads nowhere."""
        try:
            target = os.readlink(self.link)
        except FileNotFoundError:
            return None
        except OSError as error:
            why = "is not a link" if error.errno == errno.EINVAL else error.strerror
            raise StoreError(f"{self.link}: {why}; make it anew: torchpar apply") from None
        found = self._find(target.partition("/")[2]) if _TARGET.fullmatch(target) else None
        if found is None:
            where = printable(target)
            raise StoreError(f"{self.link} leads to {where}, which is not there; make a new one: torchpar apply")
        return found

    def history(self) -> tuple[Generation, ...]:
        """Returns all generations, the newest first."""
        try:
            names = os.listdir(self.generations)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"{self.generations}: {error.strerror}; make it anew: torchpar apply") from None
        found = [generation for name in names if (generation := self._find(name))]
        return tuple(sorted(found, key=lambda generation: -generation.number))

    def generation(self, number: int) -> Generation:
        """Returns the generation of this number. Raises StoreError when it is not there."""
        found = self._find(str(number))
        if found is None:
            kept = ", ".join(str(generation.number) for generation in reversed(self.history())) or "none"
            raise StoreError(f"there is no generation {number}; those kept are: {kept}")
        return found

    def previous(self, generation: Generation) -> Generation | None:
        """Returns the newest generation older than this one."""
        return next((other for other in self.history() if other.number < generation.number), None)

    def unconfirmed(self, generation: Generation) -> Unconfirmed | None:
        """Reads what comes back unless this generation in force is confirmed. Raises StoreError if that is damaged."""
        path = self._unconfirmed(generation.number)
        try:
            return parse_unconfirmed(Reader().bytes(path, 2**16))
        except FileNotFoundError:
            return None
        except OSError as error:
            why = str(error.strerror)
        except NotReadableError as error:
            why = error.why
        except ShapeError as error:
            why = str(error)
        raise StoreError(f"{path}: {why}; settle it by hand: torchpar confirm, or torchpar rollback NUMBER")

    def waiting(self) -> tuple[Unconfirmed, ...]:
        """Reads what comes back unless it is confirmed, of all generations, in force or not yet. Raises StoreError."""
        found = (self.unconfirmed(generation) for generation in self.history())
        return tuple(unconfirmed for unconfirmed in found if unconfirmed)

    def misplaced(self) -> tuple[str, ...]:
        """Finds files and links in the store's way that are not torchpar's to remove, each with what to do first."""
        found = []
        for path in (self.directory, self.generations):
            if os.path.islink(path):
                how = f"rm {path}, and have what it led to there, with mount --bind where that is on another disk"
                found.append(f"{path}: is a link, and must be a directory; first: {how}")
        if os.path.exists(self.directory) and not os.path.isdir(self.directory):
            found.append(f"{self.directory}: is not a directory; first: rm {self.directory}")
        if os.path.lexists(self.lock) and (os.path.islink(self.lock) or not os.path.isfile(self.lock)):
            found.append(f"{self.lock}: is not a file; first: rm -r {self.lock}")
        return tuple(found)

    # ---- who may change it ----

    @contextlib.contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Holds the lock of everything that changes the store, which is then root's alone and without what killed
        commands left. Raises BusyError when another has it and this is not to wait, and StoreError."""
        before = os.umask(0o022)
        try:
            with contextlib.ExitStack() as held:
                try:
                    self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                    own_directory(self.directory)
                    free = held.enter_context(locked_file(self.lock, wait=wait))
                    if free:
                        self._tidy()
                except OSError as error:
                    if misplaced := self.misplaced():
                        raise StoreError(f"{'; '.join(misplaced)}; nothing has changed") from None
                    raise StoreError(f"{self._cannot_write(error)}; nothing has changed") from None
                if not free:
                    raise BusyError("another torchpar is at work on this host; try again when it is done")
                yield
        finally:
            os.umask(before)

    def _tidy(self) -> None:
        """Makes the store root's alone, and removes what a command that was killed has left. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(self.generations.lstat().st_mode) and not self.generations.is_symlink():
                remove(self.generations)
            else:
                own_directory(self.generations)
        self._link_again()
        active = _number(self.link)
        # What leads elsewhere may be one of these, by another path.
        is_known = active is not None or not os.path.lexists(self.link)
        prepared = _number(self.prepared)
        if prepared is not None and prepared != active:
            # It has its name, but was never in force, or systemd refused it. The disk may still lead there.
            sync_directory(self.directory)
            self._remove(prepared)
        for path in (self.prepared, self._back, self._old):
            remove(path)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.generations):
                match = _UNCONFIRMED.fullmatch(name)
                # A link to itself is of a command that was killed in _link_again().
                to_itself = (number := _number(self.generations / name)) is not None and str(number) == name
                if to_itself or LITTER.fullmatch(name) or (match and is_known and int(match[1]) != active):
                    remove(self.generations / name)

    def _link_again(self) -> None:
        """Makes `active` a link again where it is a folder, as a program that follows links copies it.

        At each moment the same is in force: the generation that it is a copy of, or else one of its own. Raises
        OSError and StoreError.
        """
        if self.link.is_symlink() or not self.link.is_dir():
            return
        self.generations.mkdir(mode=0o755, exist_ok=True)
        same = self._same_as(Generation(0, self.link))
        number = same or self._free()
        # The name that the folder gets: one that goes, or that of a generation.
        place = self._old if same else self.generations / str(number)
        remove(self._old)
        os.symlink(_target(number), place)
        try:
            exchange(place, self.link)
        except OSError as error:
            os.unlink(place)
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            raise StoreError(
                f"{self.link}: must be a link, and this file system cannot exchange a directory for one; first: "
                f"mv {self.link} {self.link}.moved"
            ) from None
        for folder in (self.generations, self.directory):
            sync_directory(folder)

    def _same_as(self, copy: Generation) -> int | None:
        """Returns the newest generation that is whole and has the same in it."""
        with contextlib.suppress(StoreError):
            content = copy.read()
            for generation in self.history():
                with contextlib.suppress(StoreError):
                    if generation.read() == content:
                        return generation.number
        return None

    # ---- changes ----

    def write(self, content: Content, unconfirmed: Unconfirmed | None = None) -> Generation:
        """Prepares a new generation, complete and on the disk, without putting it in force.

        Raises StoreError when the store cannot be written or is not root's alone; then nothing is left behind.
        """
        number = self._free()
        generation = Generation(number, self.generations / str(number))
        try:
            self.generations.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._refuse_foreign()
            try:
                remove(self._new(number))
                write_tree(self._new(number), content)
                if unconfirmed:
                    remove(self._unconfirmed(number))
                    write_new(self._unconfirmed(number), unconfirmed.json())
                # Before it has its name: whoever finds both knows that it was never in force.
                remove(self.prepared)
                os.symlink(_target(number), self.prepared)
                sync_directory(self.directory)
                os.rename(self._new(number), generation.path)
                sync_directory(self.generations)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._remove(number)
                    remove(self.prepared)
                raise
        except OSError as error:
            raise self._cannot_write(error) from None
        return generation

    def activate(self, generation: Generation, *, refused: Generation | None = None) -> None:
        """Puts a generation in force for the next daemon-reload, with one rename. Raises StoreError: then it is not.

        Whether the disk has it is for `sync` to find out. A `refused` one that it replaces counts as prepared again.
        """
        try:
            self._refuse_foreign()
            link = self.prepared
            if _number(link) != generation.number:
                link = self._back
                remove(link)
                os.symlink(_target(generation.number), link)
            if refused:
                self._prepare_again(refused)
            os.rename(link, self.link)
        except OSError as error:
            if _number(self.link) != generation.number:
                with contextlib.suppress(OSError):
                    remove(self._back)
                raise self._cannot_write(error) from None

    def deactivate(self, refused: Generation) -> None:
        """Puts no generation in force, as before the first apply. Raises StoreError."""
        self._prepare_again(refused)
        try:
            remove(self.link)
        except OSError as error:
            raise self._cannot_write(error) from None

    def sync(self) -> None:
        """Brings to the disk which generation is active, and what waits. Raises StoreError when it may not be there."""
        try:
            sync_directory(self.directory)
            sync_directory(self.generations)
        except OSError as error:
            raise self._cannot_write(error) from None

    def settle(self, generation: Generation) -> None:
        """Lets nothing come back for a generation. Raises StoreError; `unconfirmed` then says whether it was done."""
        try:
            remove(self._unconfirmed(generation.number))
            sync_directory(self.generations)
        except OSError as error:
            raise self._cannot_write(error) from None

    def amend(self, generation: Generation, unconfirmed: Unconfirmed) -> None:
        """Replaces what comes back for a generation. Raises StoreError."""
        new = self._new(generation.number)
        try:
            remove(new)
            write_new(new, unconfirmed.json())
            os.rename(new, self._unconfirmed(generation.number))
            sync_directory(self.generations)
        except OSError as error:
            raise self._cannot_write(error) from None

    def discard(self, generation: Generation) -> None:
        """Removes a generation that is not in force. Raises StoreError."""
        try:
            self._remove(generation.number)
            if _number(self.prepared) == generation.number:
                remove(self.prepared)
        except OSError as error:
            raise self._cannot_write(error) from None

    def prune(self, keep: int = KEPT) -> None:
        """Removes all but the newest generations, the active one and what it may go back to. Raises StoreError."""
        active = self.active()
        unconfirmed = self.unconfirmed(active) if active else None
        spared = {active.number} if active else set()
        if unconfirmed:
            spared.add(unconfirmed.back)
        for generation in self.history()[keep:]:
            if generation.number not in spared:
                self.discard(generation)

    def _prepare_again(self, generation: Generation) -> None:
        # Where this fails it is kept like one that was in force.
        with contextlib.suppress(OSError):
            remove(self.prepared)
            os.symlink(_target(generation.number), self.prepared)

    def _free(self) -> int:
        """Returns the first number above those of all generations that nothing has, whatever else lies among them."""
        newest = max((generation.number for generation in self.history()), default=0)
        return next(number for number in itertools.count(newest + 1) if not self._is_taken(number))

    def _is_taken(self, number: int) -> bool:
        return _number(self.link) == number or os.path.lexists(self.generations / str(number))

    def _remove(self, number: int) -> None:
        # It loses its name first, so that a half-removed one is never taken for a generation.
        remove(self._new(number))
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.generations / str(number), self._new(number))
        remove(self._new(number))
        remove(self._unconfirmed(number))

    def _find(self, name: str) -> Generation | None:
        path = self.generations / name
        if _TARGET.fullmatch(f"generations/{name}") and path.is_dir() and not path.is_symlink():
            return Generation(int(name), path)
        return None

    def _new(self, number: int) -> Path:
        return self.generations / f".{number}.new"

    def _unconfirmed(self, number: int) -> Path:
        return self.generations / f"{number}.unconfirmed"

    def _refuse_foreign(self) -> None:
        if place := find_open(self.directory, self.generations):
            raise StoreError(
                f"{place}: must be a directory that only root can write, as what is in it decides what runs; "
                f"chown root {place}; chmod go-w {place}"
            )

    def _cannot_write(self, error: OSError) -> StoreError:
        where = printable(str(error.filename or self.directory))
        hint = "; free some space and run torchpar apply again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return StoreError(f"the store cannot be written: {where}: {error.strerror}{hint}")


def _target(number: int) -> str:
    return f"generations/{number}"


def _number(link: Path) -> int | None:
    """Returns the number of the generation that a link leads to."""
    try:
        match = _TARGET.fullmatch(os.readlink(link))
    except OSError:
        return None
    return int(match[1]) if match else None
