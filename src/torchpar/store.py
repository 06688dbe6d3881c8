"""The store: write a generation, flip the active link, roll back.

Kill the writer anywhere and the old or the new generation is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from torchpar.errors import BusyError, StoreError
from torchpar.generations import Content, Generation, refuse_changed_by_others
from torchpar.host.files import replace_link, sync_directory, write_new

STORE = Path("/var/lib/torchpar")
KEPT = 10


class Store:
    """The generations of this host, below one directory."""

    def __init__(self, directory: Path = STORE) -> None:
        self.directory = directory
        self._generations = directory / "generations"
        self._active = directory / "active"

    def active(self) -> Generation | None:
        """The generation in force; None when there is none yet. Raises StoreError when the link leads nowhere."""
        try:
            refuse_changed_by_others(self._active)
            target = os.readlink(self._active)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._active}: {error.strerror}; remove it and run: torchpar apply") from None
        found = self._find(target.rpartition("/")[2])
        if found is None:
            raise StoreError(f"{self._active} leads to {target}, which is not there; make a new one: torchpar apply")
        return found

    def history(self) -> tuple[Generation, ...]:
        """All generations, the newest first."""
        try:
            names = os.listdir(self._generations)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"{self._generations}: {error.strerror}") from None
        found = [generation for name in names if (generation := self._find(name))]
        return tuple(sorted(found, key=lambda generation: -generation.number))

    def generation(self, number: int) -> Generation:
        """The generation of this number. Raises StoreError when it is not there."""
        found = self._find(str(number))
        if found is None:
            kept = ", ".join(str(generation.number) for generation in reversed(self.history())) or "none"
            raise StoreError(f"there is no generation {number}; those kept are: {kept}")
        return found

    def previous(self, generation: Generation) -> Generation | None:
        """The newest generation older than this one."""
        return next((other for other in self.history() if other.number < generation.number), None)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of everything that changes the store. Raises BusyError when another has it, and StoreError."""
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            # A file that only root can open, here and not in /run/lock, where anybody could make it first: whoever may
            # open a file or a directory, be it for reading, may lock it, and so keep this host from being placed.
            flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.directory / ".lock", flags, 0o600)
        except OSError as error:
            raise self._cannot_write(error) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError("another torchpar is at work on this host; try again when it is done") from None
            yield
        finally:
            os.close(descriptor)

    def write(self, content: Content) -> Generation:
        """Write a new generation, complete and on the disk, without putting it in force.

        Raises StoreError when the store cannot be written or is not root's alone; then nothing is left behind.
        """
        number = max((generation.number for generation in self.history()), default=0) + 1
        path = self._generations / str(number)
        temporary = self._generations / f".{number}.new"
        try:
            self._generations.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._refuse_foreign()
            for leftover in self._generations.glob(".*.new"):
                shutil.rmtree(leftover)
            try:
                _write_tree(temporary, content)
                os.rename(temporary, path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_directory(self._generations)
        except OSError as error:
            raise self._cannot_write(error) from None
        return Generation(number, path)

    def activate(self, generation: Generation) -> None:
        """Put a generation in force for the next daemon-reload, with one rename. Raises StoreError."""
        try:
            self._refuse_foreign()
            replace_link(self._active, f"generations/{generation.number}")
        except OSError as error:
            raise self._cannot_write(error) from None

    def deactivate(self) -> None:
        """Put no generation in force, as before the first apply. Raises StoreError."""
        try:
            self._active.unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from None

    def discard(self, generation: Generation) -> None:
        """Remove a generation that is not in force. Raises StoreError."""
        try:
            # It loses its name first, so that a half-removed one is never taken for a generation.
            temporary = self._generations / f".{generation.number}.new"
            os.rename(generation.path, temporary)
            shutil.rmtree(temporary)
        except OSError as error:
            raise self._cannot_write(error) from None

    def prune(self, keep: int = KEPT) -> None:
        """Remove all but the newest generations and the active one. Raises StoreError."""
        active = self.active()
        for generation in self.history()[keep:]:
            if generation != active:
                self.discard(generation)

    def _find(self, name: str) -> Generation | None:
        path = self._generations / name
        if name.isascii() and name.isdigit() and path.is_dir() and not path.is_symlink():
            return Generation(int(name), path)
        return None

    def _refuse_foreign(self) -> None:
        own = (self._generations, self.directory)
        for place in (*own, *self.directory.resolve().parents):
            status = place.lstat()
            # In a directory like /tmp others cannot replace what is not theirs, but they can add to it.
            sticky = status.st_mode & stat.S_ISVTX and place not in own
            writable = status.st_mode & 0o022 and not sticky
            if status.st_uid not in (0, os.geteuid()) or not stat.S_ISDIR(status.st_mode) or writable:
                raise StoreError(
                    f"{place}: must be a directory that only root can write, as what is in it decides what runs; "
                    f"chown root {place}; chmod go-w {place}"
                )

    def _cannot_write(self, error: OSError) -> StoreError:
        where = error.filename or self.directory
        hint = "; free some space and run torchpar apply again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return StoreError(f"the store cannot be written: {where}: {error.strerror}{hint}; nothing has changed")


def _write_tree(directory: Path, content: Content) -> None:
    tree = content.tree()
    # Whatever the umask of who applies is, nobody else may write there, or it is not read.
    directory.mkdir(mode=0o755)
    (directory / "units").mkdir(mode=0o755)
    made = {directory, directory / "units"}
    for path, text in tree.items():
        file = directory / path
        if file.parent not in made:
            file.parent.mkdir(mode=0o755)
            made.add(file.parent)
        write_new(file, text)
    for path, target in content.links.items():
        link = directory / "units" / path
        link.parent.mkdir(mode=0o755, exist_ok=True)
        made.add(link.parent)
        link.symlink_to(target)
    digests = {path: hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() for path, text in tree.items()}
    write_new(directory / "sha256sums", "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items())))
    for place in made:
        sync_directory(place)
