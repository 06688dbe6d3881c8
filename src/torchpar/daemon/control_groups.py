"""Hears from the kernel when a service starts or ends: its control group comes or goes (inotify(7)).

systemd makes the group of a service before its first process, and removes it after the last. Nothing here asks or waits
for systemd, so it also works while D-Bus does not.
"""

from __future__ import annotations

import ctypes
import os

from torchpar.host.cgroup import SLICE

# <sys/inotify.h>, which Python has not.
_CREATE, _DELETE, _ONLYDIR = 0x100, 0x200, 0x01000000


class ControlGroups:
    """A watch of the folder that the services' control groups are in. `fileno()` can be read when one came or went."""

    def __init__(self) -> None:
        """Watches nothing yet. Raises OSError."""
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self._root: str | None = None

    def fileno(self) -> int:
        """Returns the file descriptor to select on."""
        return int(self._descriptor)

    def watch(self, root: str) -> None:
        """Watches the slice of the services below this folder, and for its coming. What is watched stays so."""
        self._root = root
        self._add(root, _CREATE | _ONLYDIR)
        self._add(os.path.join(root, SLICE), _CREATE | _DELETE | _ONLYDIR)

    def take(self) -> None:
        """Takes what has been heard. The slice may be a new one."""
        try:
            while os.read(self._descriptor, 2**16):
                pass
        except BlockingIOError:
            pass
        if self._root:
            self._add(os.path.join(self._root, SLICE), _CREATE | _DELETE | _ONLYDIR)

    def _add(self, path: str, events: int) -> None:
        # One that is not there comes later; the same folder again changes nothing.
        self._library.inotify_add_watch(self._descriptor, os.fsencode(path), events)
