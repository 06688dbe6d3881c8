"""Compares the store with what torchpar put there: places, the active generation's own files, and leftovers.

What it finds `torchpar apply` mends, also where the conf has not changed, or the line says what is to be done first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from torchpar.contract.errors import StoreError, printable
from torchpar.contract.owners import find_strangers
from torchpar.generations.generation import Content, Generation
from torchpar.generations.store import LITTER, Store
from torchpar.host.lock import is_locked

_MOST = 10


def find_drift(store: Store, loaded: Path | None) -> tuple[str, ...]:
    """Finds what is not as torchpar left it: sentences, the first of many. Raises nothing: an unreadable file is one.

    `loaded` is where systemd keeps what the generator copied; None where it does not run.
    """
    busy = is_locked(store.lock)
    found, damaged = [*_places(store)], [f"{what}; then: torchpar apply" for what in store.misplaced()]
    try:
        active = store.active()
        content = active.read() if active else None
    except StoreError as error:
        damaged.append(str(error))
    else:
        found += _tree(active.path, content) if active and content else ()
        passing = [*_litter(store), *_unfinished(store, active, content, loaded)]
        if passing and not busy and not is_locked(store.lock):
            # Else they are of a command that is at work.
            found += passing
    if len(found) > _MOST:
        found[_MOST:] = [f"{store.directory}: {len(found) - _MOST} more things are not as torchpar left them"]
    return (*damaged, *(f"{drift}; to mend it: torchpar apply" for drift in found))


def find_generation_drift(generation: Generation, content: Content) -> tuple[str, ...]:
    """Finds what in a generation is not as it was written, beyond what its checksums say, as sentences."""
    return tuple(itertools.islice(_tree(generation.path, content), _MOST + 1))


def find_foreign(generation: Generation) -> str | None:
    """Returns the first file, folder or link of a generation, or on the way to it, that others than root can change;
    None where there is none.

    Who is not root may have a store of their own.
    """
    for stranger in find_strangers(str(generation.path.absolute()), (0, os.geteuid())):
        return printable(stranger.place)
    for folder, _, names in os.walk(generation.path, onerror=lambda error: None):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            status = os.lstat(path)
            writable = status.st_mode & 0o022 and not stat.S_ISLNK(status.st_mode)
            if status.st_uid not in (0, os.geteuid()) or writable:
                return printable(path)
    return None


def find_unloaded(content: Content, loaded: Path) -> str | None:
    """Finds the first unit that systemd has not read as it is in a generation; None when it has read all of them."""
    for path, text in content.files.items():
        try:
            if (loaded / path).read_bytes() != text.encode("utf-8", "surrogateescape"):
                return path
        except OSError:
            return path
    return next((path for path in content.links if not (loaded / path).is_symlink()), None)


def _places(store: Store) -> Iterator[str]:
    for path in (store.directory, store.generations):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            yield f"{path}: {error.strerror}"
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _foreign(path, status, 0o755)
        elif path == store.generations and not stat.S_ISLNK(status.st_mode):
            yield f"{path}: is not a directory"
    with contextlib.suppress(OSError):
        status = store.lock.lstat()
        if stat.S_ISREG(status.st_mode):
            yield from _foreign(store.lock, status, 0o600)


def _unfinished(
    store: Store, active: Generation | None, content: Content | None, loaded: Path | None
) -> Iterator[str]:
    with contextlib.suppress(StoreError):
        if active is None and store.history():
            yield f"{store.link}: is not there, and there are generations"
    if active and content and loaded and (path := find_unloaded(content, loaded)):
        yield f"generation {active.number} is active, and systemd has not read {path} of it"


def _tree(root: Path, content: Content) -> Iterator[str]:
    files = {*content.tree(), "sha256sums"}
    links = {f"units/{path}": target for path, target in content.links.items()}
    seen = set()
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            yield from _foreign(folder, folder.lstat(), 0o755)
            names = sorted(os.listdir(folder))
        except OSError as error:
            yield f"{printable(str(folder))}: {error.strerror}"
            continue
        for name in names:
            path = folder / name
            inside = str(path.relative_to(root))
            try:
                status = path.lstat()
            except OSError as error:
                yield f"{printable(str(path))}: {error.strerror}"
                continue
            if stat.S_ISDIR(status.st_mode) and any(known.startswith(f"{inside}/") for known in (*files, *links)):
                folders.append(path)
            elif inside in links and stat.S_ISLNK(status.st_mode):
                seen.add(inside)
                if os.readlink(path) != links[inside]:
                    yield f"{printable(str(path))}: leads to {printable(os.readlink(path))}, not to {links[inside]}"
            elif inside in files and stat.S_ISREG(status.st_mode):
                yield from _foreign(path, status, 0o644)
            elif not (inside == "units" and stat.S_ISDIR(status.st_mode)):
                yield f"{printable(str(path))}: is not torchpar's"
    yield from (f"{root / path}: is not there" for path in links if path not in seen)


def _litter(store: Store) -> Iterator[str]:
    for folder, is_litter in (
        (store.directory, lambda name: name in (".active.new", ".active.back", ".active.old")),
        (store.generations, LITTER.fullmatch),
    ):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        yield from (f"{folder / name}: is left of a torchpar that was killed" for name in names if is_litter(name))


def _foreign(path: Path, status: os.stat_result, mode: int) -> Iterator[str]:
    where = printable(str(path))
    if status.st_uid not in (0, os.geteuid()):
        yield f"{where}: belongs to user {status.st_uid}, not to root"
    if stat.S_IMODE(status.st_mode) != mode:
        yield f"{where}: has mode {stat.S_IMODE(status.st_mode):04o}, not {mode:04o}"
