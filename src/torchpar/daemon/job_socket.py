"""Receives the jobs' messages: datagrams that anybody may send, believed only of the sender's own unit.

Which unit that is, the kernel says: it adds the process that sent (SO_PASSCRED, unix(7)), whose control group is read.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import struct
import time
from collections.abc import Callable

from torchpar.daemon.throughput import Ledger, parse_report

# A message has about 150 bytes; more is no message.
_MOST_BYTES = 1024
# Datagrams in one go, and the rest after it: whoever sends more does not keep the loop from its other work.
_MOST_DATAGRAMS = 1024
_PAUSE = 0.002

_UCRED = struct.Struct("3i")
# systemd's own hierarchy: the unified one, or where the host has both, the one that is named.
_GROUP = re.compile(r"^(?:0:|[0-9]+:name=systemd):(/.*)$", re.MULTILINE)
_UNIT = re.compile(r"/torchpar\.slice/(?:[^/]+\.slice/)*(torchpar-[^/]+\.service)(?:/.*)?")


class Receiver:
    """Listens at a path that every user may write to, and puts what holds into the ledger."""

    def __init__(
        self,
        path: str,
        selector: selectors.BaseSelector,
        ledger: Ledger,
        read_cgroup: Callable[[int], str],
    ) -> None:
        self._ledger = ledger
        self._selector = selector
        self._resume_at: float | None = None
        self._read_cgroup = read_cgroup
        self._root = root_group(read_cgroup(os.getpid()))
        if os.path.lexists(path):
            os.unlink(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        # Before there is a name to send to: no message comes without its sender.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        before = os.umask(0o111)
        try:
            self._socket.bind(path)
        finally:
            os.umask(before)
        selector.register(self._socket, selectors.EVENT_READ, self.receive)

    def receive(self) -> None:
        """Take what has come, and of each process the last. Nothing that is wrong with it is worth a line.

        The queue holds ten: it has room for others as long as it is emptied faster than one process fills it.
        """
        last: dict[int, bytes] = {}
        for _ in range(_MOST_DATAGRAMS):
            try:
                data, extra, flags, _ = self._socket.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(_UCRED.size))
            except BlockingIOError:
                break
            pid = _sender(extra)
            if pid is not None and not flags & socket.MSG_TRUNC:
                # A report has totals, so the last of a process says it all.
                last[pid] = data
        else:
            self._selector.unregister(self._socket)
            self._resume_at = time.monotonic() + _PAUSE
        for pid, data in last.items():
            report = parse_report(data)
            unit = report and unit_of(self._read_cgroup(pid), self._root)
            if report and unit:
                self._ledger.record(unit, pid, report, time.monotonic())

    def resume(self) -> float | None:
        """Listen again when the pause is over; the seconds until then, None where it listens."""
        if self._resume_at is None:
            return None
        left = self._resume_at - time.monotonic()
        if left > 0:
            return left
        self._resume_at = None
        self._selector.register(self._socket, selectors.EVENT_READ, self.receive)
        return None


def root_group(own: str) -> str:
    """The group that systemd's slices are in, by this daemon's own: "" unless a container shows its host's paths."""
    group = _GROUP.search(own)
    return group[1].partition("/system.slice/")[0] if group and "/system.slice/" in group[1] else ""


def unit_of(cgroup: str, root: str) -> str | None:
    """The service of torchpar's that a process with this /proc/PID/cgroup belongs to; None for any other process.

    Only torchpar's own slice counts: a user may name groups below the user's session as they like.
    """
    for group in _GROUP.findall(cgroup):
        if group.startswith(root) and (match := _UNIT.fullmatch(group[len(root) :])):
            return match[1]
    return None


def _sender(extra: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= _UCRED.size:
            # 0: the sender is in a PID namespace that cannot be seen from here.
            return int(_UCRED.unpack(data[: _UCRED.size])[0]) or None
    return None


def read_cgroup_of(pid: int) -> str:
    """/proc/PID/cgroup; "" if the process has ended."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        # It has ended meanwhile; what it did is no longer of interest.
        return ""
