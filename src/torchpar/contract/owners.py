"""Finds out who could change what a path leads to: owners and modes of everything on the way, link by link.

A file is as safe as the weakest place on its way: who owns a folder above it, or a link in it, can put another file in
its place. Runs under any Python from 3.9 on, also within a job before its first line, and needs nothing else.
"""

import errno
import os
import stat

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LINKS = 40  # the kernel's own limit, path_resolution(7)


class Stranger:
    """A place that somebody else than the owners asked for can change. `mode` is 0 of a link, whose owner decides."""

    def __init__(self, place: str, uid: int, gid: int, mode: int) -> None:
        self.place = place
        self.uid = uid
        self.gid = gid
        self.mode = mode

    def is_writable(self, owners: "Collection[int]") -> bool:
        """Says whether its mode is what lets somebody else in; else it is its owner."""
        return self.uid in owners


def code_places(path: str) -> "list[str]":
    """Lists what decides what a file of code does: itself, and the folders where Python looks for modules first.

    That is the folder where a script really is, and that where a handler is named.
    """
    return list(dict.fromkeys((path, os.path.dirname(path), os.path.dirname(os.path.realpath(path)))))


def find_strangers(path: str, owners: "Collection[int]", *, shared: bool = False) -> "Iterator[Stranger]":
    """Yields each place on the way of an absolute path, from / on, that somebody else than the owners can change.

    `shared` lets a group write: to be asked where an owner may have others beside. Of what is not there, and of what
    this process may not look at, only the way to it is judged. Raises OSError where the file system fails.
    """
    at, named = "/", set()
    for stranger in _judge(at, os.lstat(at), owners, shared, last=False):
        named.add(stranger.place)
        yield stranger
    for step in steps(path):
        if isinstance(step.found, FileNotFoundError):
            folder = os.lstat(step.folder)
            if stat.S_IMODE(folder.st_mode) & stat.S_ISVTX and folder.st_mode & 0o022:
                # Where everybody may make files, that is anybody's to make.
                yield Stranger(step.folder, folder.st_uid, folder.st_gid, stat.S_IMODE(folder.st_mode))
            return
        if isinstance(step.found, (NotADirectoryError, PermissionError)):
            return
        if isinstance(step.found, (OSError, ValueError)):
            if getattr(step.found, "errno", 0) == errno.ELOOP:
                return
            raise step.found
        if step.found is not None:
            for stranger in _judge(step.place, step.found, owners, shared, last=False):
                named.add(stranger.place)
                yield stranger
        at = step.end
    # Only now it is known where the path ends: it may do so by a link, a /, a . or a ..
    if at not in named:
        yield from _judge(at, os.lstat(at), owners, shared, last=True)


class Step:
    """One name on the way of a path: looked up in `folder`, as `place`, from where the way goes on at `end`.

    `found` is what is there, why it cannot be known, or None for "..", which leads back. `is_last` where no name
    follows.
    """

    def __init__(
        self, folder: str, place: str, found: "os.stat_result | OSError | ValueError | None", end: str, is_last: bool
    ) -> None:
        self.folder = folder
        self.place = place
        self.found = found
        self.end = end
        self.is_last = is_last


def steps(path: str) -> "Iterator[Step]":
    """Goes an absolute path as the kernel does, link by link and folder by folder, to where it ends or stops."""
    at, links = "/", 0
    todo = [name for name in path.split("/")[::-1] if name not in ("", ".")]
    while todo:
        name = todo.pop()
        if name == "..":
            yield Step(at, at, None, os.path.dirname(at), not todo)
            at = os.path.dirname(at)
            continue
        here = os.path.join(at, name)
        try:
            status = os.lstat(here)
            target = os.readlink(here) if stat.S_ISLNK(status.st_mode) else None
            links += target is not None
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        except (OSError, ValueError) as error:
            yield Step(at, here, error, here, not todo)
            return
        folder, at = at, here
        if target is not None:
            todo += [each for each in target.split("/")[::-1] if each not in ("", ".")]
            at = "/" if target.startswith("/") else folder
        yield Step(folder, here, status, at, not todo)


def _judge(
    place: str, status: os.stat_result, owners: "Collection[int]", shared: bool, *, last: bool
) -> "Iterator[Stranger]":
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        mode = 0
    # In a folder like /tmp nobody can replace what is not theirs, and what is there is judged by itself.
    sticky = stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX and not last
    writable = mode & (0o002 if shared else 0o022) and not sticky
    if status.st_uid not in owners or writable:
        yield Stranger(place, status.st_uid, status.st_gid, mode)
