"""Ends a process that loads a model where its server is gone and it ends neither by itself nor by a signal.

What loads a model may ignore all signals, and a server that was killed ends nothing any more. Imports no torch: it is a
a process of its own, which is there as long as what it guards.
"""

from __future__ import annotations

import os
import select
import signal

# For the last words of what is stuck, and for its workers.
GRACE = 1.5


def guard(fd: int) -> None:
    """Has this process killed, some time after the other end of a socket is closed, if it is still there.

    What does so is no child of this one: a handler may wait for its own.
    """
    guarded = os.pidfd_open(os.getpid())
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os.close(guarded)
        return
    try:
        if os.fork() == 0:
            _watch(fd, guarded)
    finally:
        os._exit(0)


def _watch(fd: int, guarded: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ends = select.poll()
    ends.register(guarded, select.POLLIN)
    ends.register(fd, select.POLLRDHUP)
    # While this holds the socket, the server does not see that the other process has ended.
    if any(number == guarded for number, _ in ends.poll()):
        return
    ends.unregister(fd)
    if not ends.poll(GRACE * 1000):
        signal.pidfd_send_signal(guarded, signal.SIGKILL)
