"""The store: write a generation, flip the active link, roll back.

A generation is a directory that is complete before it has its name and never changes after: the rendered units, the
plan, the conf they came from, a manifest of the host they were made for, and checksums. Kill the writer anywhere and
the old or the new generation is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchpar.errors import BusyError, StoreError, printable
from torchpar.host.files import replace_link, sync_directory, write_new
from torchpar.host.reading import NotReadableError, Reader
from torchpar.owners import find_strangers
from torchpar.record import parse_plan
from torchpar.shape import ShapeError
from torchpar.syntax import ConfFile

STORE = Path("/var/lib/torchpar")
KEPT = 10

_LIMIT = 2**26  # of a file; the plan of a hundred services has less than 1 MiB


@dataclass(frozen=True)
class Content:
    """What a generation is made of.

    `files` and `links` are those of a UnitSet, `plan` is JSON text, `conf` the files in their order, `manifest` the
    host that it was made for: the text of cpus_online and nodes_online.
    """

    files: Mapping[str, str]
    links: Mapping[str, str]
    plan: str
    conf: tuple[ConfFile, ...]
    manifest: Mapping[str, str]

    def services(self) -> tuple[dict[str, Any], ...]:
        """The services of the plan, as plan_json() has them. Raises StoreError when it is no plan."""
        try:
            return parse_plan(self.plan)
        except ShapeError as error:
            raise StoreError(f"the plan of a generation is damaged ({error}); make a new one: torchpar apply") from None

    def tree(self) -> dict[str, str]:
        """Every file of the generation but the checksums, by its path in it."""
        tree = {f"units/{path}": text for path, text in self.files.items()}
        tree["plan.json"] = self.plan
        tree["manifest"] = "".join(f"{key} {value}\n" for key, value in self.manifest.items())
        # The number keeps the order in which later files win; the first line keeps the path.
        for number, file in enumerate(self.conf):
            tree[f"conf/{number:03d}"] = f"{file.path}\n{file.text}"
        tree["links"] = "".join(f"{path} {target}\n" for path, target in sorted(self.links.items()))
        return tree


@dataclass(frozen=True)
class Generation:
    """One generation on the disk."""

    number: int
    path: Path

    def read(self) -> Content:
        """All of it, checked against its checksums. Raises StoreError when it is damaged."""
        sums = self._sums()
        tree = {}
        for path, expected in sums.items():
            text = self._text(path)
            if hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() != expected:
                raise self._damaged(f"{printable(path)} has changed")
            tree[path] = text
        missing = {"plan.json", "manifest", "links"} - set(tree)
        if missing:
            raise self._damaged(f"{min(missing)} is missing")
        conf = []
        for path in sorted(path for path in tree if path.startswith("conf/")):
            name, _, text = tree[path].partition("\n")
            conf.append(ConfFile(name, text, applied=True))
        manifest = dict(_pairs(tree["manifest"]))
        if not {"cpus_online", "nodes_online"} <= set(manifest):
            raise self._damaged("manifest is not what torchpar wrote")
        return Content(
            {path.removeprefix("units/"): text for path, text in tree.items() if path.startswith("units/")},
            dict(_pairs(tree["links"])),
            tree["plan.json"],
            tuple(conf),
            manifest,
        )

    def written_at(self) -> float:
        """When it was written, in seconds since the epoch."""
        return self.path.stat().st_mtime

    def _sums(self) -> dict[str, str]:
        sums = {path: digest for digest, path in _pairs(self._text("sha256sums"), separator="  ")}
        if not sums or any(path.startswith("/") or ".." in path.split("/") or "\0" in path for path in sums):
            raise self._damaged("sha256sums is not what torchpar wrote")
        return sums

    def _text(self, path: str) -> str:
        try:
            _refuse_changed_by_others(self.path / path)
            return Reader().bytes(self.path / path, _LIMIT).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise self._damaged(f"{printable(path)}: {error.strerror}") from None
        except NotReadableError as error:
            raise self._damaged(f"{printable(path)} {error.why}") from None

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"generation {self.number} in {self.path} is damaged ({what}); make a new one: torchpar apply"
        )


class Store:
    """The generations of this host, below one directory."""

    def __init__(self, directory: Path = STORE) -> None:
        self.directory = directory
        self._generations = directory / "generations"
        self._active = directory / "active"

    def active(self) -> Generation | None:
        """The generation in force; None when there is none yet. Raises StoreError when the link leads nowhere."""
        try:
            _refuse_changed_by_others(self._active)
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


def _refuse_changed_by_others(place: Path) -> None:
    """Raise StoreError for what others than root can change: who reads it may be root, and puts it in force.

    Who is not root may have a store of their own. Raises OSError.
    """
    for found in find_strangers(str(place.absolute()), (0, os.geteuid())):
        raise StoreError(
            f"{printable(found.place)} can be changed by others than root, and what is in the store decides what runs; "
            f"when it is root's again (chown, chmod go-w): rm -r {STORE}/active {STORE}/generations; torchpar apply"
        )


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


def _pairs(text: str, separator: str = " ") -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        first, _, second = line.partition(separator)
        yield first, second
