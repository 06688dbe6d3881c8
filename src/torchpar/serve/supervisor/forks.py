"""Starts the serving processes of one place as forks of one that has imported torch, whose memory they share.

What a process has imported is 150 MiB, and takes seconds. The one that is forked has no threads, loads no model and
answers nobody; it ends when this end of its socket is closed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind: so a fork's fork can be waited for here."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Forked:
    """Stands for one fork, as subprocess.Popen does for what it starts. `pid` is known once the fork has said it.

    `quick` says that what forks it has forked before: there is nothing left to import.
    """

    def __init__(self, server: subprocess.Popen[bytes], *, quick: bool = False) -> None:
        self._server = server
        self.quick = quick
        self.pid = 0
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Returns how it ended, where that was seen, or where it can never begin; None else."""
        if not self.pid and self.returncode is None:
            self.returncode = self._server.poll()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signals it, or, before it is there, what would fork it."""
        if not self.pid:
            self._server.send_signal(number)
        elif self.returncode is None:
            os.kill(self.pid, number)  # nobody else has its number before it was waited for

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts what forks when it is needed first, and again when that has ended."""

    def __init__(self, start: Callable[[int], subprocess.Popen[bytes]]) -> None:
        """start: starts what forks, given its end of the socket."""
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None
        self._door: socket.socket | None = None
        self._first: Forked | None = None  # of the process that forks now

    def fork(self, files: list[int]) -> Forked:
        """Has a process forked that gets these descriptors. Raises OSError."""
        if self._process is None or self._door is None or self._process.poll() is not None:
            self.close()
            self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = self._start(theirs.fileno())
            self._first = None
        assert self._door
        socket.send_fds(self._door, [b"fork"], files)
        fork = Forked(self._process, quick=bool(self._first and self._first.pid))
        self._first = self._first or fork
        return fork

    def poll(self) -> None:
        """Waits for what forks, where it has ended."""
        if self._process:
            self._process.poll()

    def close(self) -> None:
        """Has what forks end; its forks go on."""
        if self._door:
            self._door.close()
            self._door = None


def next_ended() -> int | None:
    """Returns the number of a process that has ended and was not waited for; None where there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found else None
