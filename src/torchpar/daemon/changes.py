"""Hears of what changes: services that start or end, the conf, the store (inotify(7)), and the host's CPUs.

systemd makes the control group of a service before its first process, and removes it after the last. Nothing here asks
or waits for systemd, so it also works while D-Bus does not. What is not heard, such as a file that a link of the conf
leads to, is seen once a minute.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping

from torchpar.contract.paths import JOBS
from torchpar.host.cgroup import SLICE
from torchpar.host.job_folder import held_mark

# <sys/inotify.h>, which Python has not.
_ATTRIBUTES, _CLOSED, _MOVED, _CREATED, _DELETED, _OVERFLOW = 0x4, 0x8, 0xC0, 0x100, 0x200, 0x4000
_DELETED_ITSELF, _MOVED_ITSELF, _IGNORED = 0x400, 0x800, 0x8000
_ONLY_FOLDERS, _ONCE = 0x01000000, 0x80000000
_EVENT = struct.Struct("iIII")
_ROOM = 2**16


class Changes:
    """Watches folders. `fileno()` can be read when something has changed there."""

    def __init__(self, folders: Mapping[str, str], read_host: Callable[[], str]) -> None:
        """Watches what in these folders has a name that begins so.

        `read_host` gives a text that changes with the host's CPUs and nodes. Raises OSError.
        """
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self._folders, self._read_host = folders, read_host
        self._groups: str | None = None
        # The idle services, by the kernel's numbers of the watches of their marks.
        self._idle: dict[int, str] = {}
        self._watched: dict[int, str] = {}
        self._host = read_host()
        self.watch()

    def fileno(self) -> int:
        """Returns the file descriptor to select on."""
        return int(self._descriptor)

    def watch_groups(self, root: str) -> None:
        """Watches the slice of the services below this folder, and for its coming."""
        self._groups = root
        self.watch()

    def watch_idle(self, units: Collection[str], jobs: str = JOBS) -> None:
        """Watches for the end of idleness of these services alone, whose CPUs are lent: the mark that they remove.

        Each is heard once: a service does what it likes in its folder, and as often as it likes.
        """
        for number in [number for number, unit in self._idle.items() if unit not in units]:
            self._library.inotify_rm_watch(self._descriptor, number)
            del self._idle[number]
        for unit in set(units) - set(self._idle.values()):
            with contextlib.suppress(OSError), held_mark(unit, jobs) as held:
                number = self._add_watch(f"/proc/self/fd/{held}", _ATTRIBUTES | _DELETED_ITSELF | _MOVED_ITSELF | _ONCE)
                if number >= 0:
                    self._idle[number] = unit

    def watch(self) -> None:
        """Watches again what may have gone and come since; what is watched stays so."""
        for folder in self._folders:
            self._add(folder, _ATTRIBUTES | _CLOSED | _MOVED | _CREATED | _DELETED)
        if self._groups:
            self._add(self._groups, _CREATED)
            self._add(os.path.join(self._groups, SLICE), _CREATED | _DELETED)

    def take(self) -> tuple[bool, bool, frozenset[str]]:
        """Takes what was heard: whether services started or ended, and whether anything else has changed.

        Also the units that have started, and the idle ones that are so no longer.
        """
        services = others = False
        awake = set()
        for watch, name, events in self._events():
            folder = self._watched.get(watch, "")
            if events & _OVERFLOW:
                services = others = True
                awake |= set(self._idle.values())
            elif events & _IGNORED:
                self._watched.pop(watch, None)
            elif watch in self._idle:
                awake.add(self._idle.pop(watch))
            elif folder not in self._folders:
                is_unit = os.path.basename(folder) == SLICE
                services = services or name == SLICE or is_unit
                if is_unit and events & _CREATED:
                    awake.add(name)
            else:
                others = others or name.startswith(self._folders.get(folder, ""))
        if services or others:
            self.watch()
        return services, others, frozenset(awake)

    def has_host_changed(self) -> bool:
        """Says whether the host has other CPUs or nodes than when this was asked last."""
        before, self._host = self._host, self._read_host()
        return before != self._host

    def _events(self) -> Iterator[tuple[int, str, int]]:
        """Yields the number of the watch, the name in its folder, and what has happened."""
        while True:
            try:
                data = os.read(self._descriptor, _ROOM)
            except BlockingIOError:
                return
            place = 0
            while place < len(data):
                watch, events, _, length = _EVENT.unpack_from(data, place)
                place += _EVENT.size
                name = os.fsdecode(data[place : place + length].rstrip(b"\0"))
                place += length
                yield watch, name, events

    def _add(self, folder: str, events: int) -> None:
        number = self._add_watch(folder, events | _ONLY_FOLDERS)
        # One that is not there comes later, and no number comes again.
        if number >= 0:
            self._watched[number] = folder

    def _add_watch(self, path: str, events: int) -> int:
        return int(self._library.inotify_add_watch(self._descriptor, os.fsencode(path), events))
