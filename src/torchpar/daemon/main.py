"""torchpard: one loop that looks, answers, and tells systemd that it is alive. Run by torchpard.service."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time

from torchpar.daemon.ledger import Ledger
from torchpar.daemon.receiver import Receiver, read_cgroup_of
from torchpar.daemon.server import SOCKET, Server
from torchpar.daemon.watch import POLL_SECONDS, Watch
from torchpar.environment import JOB_SOCKET
from torchpar.errors import TorchparError, printable
from torchpar.generations import Store
from torchpar.host.systemd import reload_without_waiting
from torchpar.notify import Notifier


class _Daemon:
    """The watch, the socket, and what systemd is told of them."""

    def __init__(self) -> None:
        self.notifier = Notifier()
        self.selector = selectors.DefaultSelector()
        ledger = Ledger()
        # First of all: a job that reports meanwhile is heard.
        self.receiver = Receiver(JOB_SOCKET, self.selector, ledger, read_cgroup_of)
        self._watch = Watch(Store(), ledger, tell)
        self._applied_for: object = None
        self.look()
        self.server = Server(SOCKET, self.selector, self._answer)

    def look(self) -> None:
        """Look at everything that may have changed."""
        # Each look has the watchdog's whole time: an answer that was asked for before it may have taken some.
        self.notifier.send(WATCHDOG="1")
        try:
            if not self._watch.poll():
                return
            self.notifier.send(STATUS=self._watch.status())
            if self._watch.wants_apply() and self._applied_for != self._watch.conf_stamp:
                # Once for each edit; systemd runs `torchpar apply` outside of this sandbox.
                self._applied_for = self._watch.conf_stamp
                reload_without_waiting("torchpard.service")
        except TorchparError as error:
            # systemd does not answer, or executes itself anew: look again in time.
            tell(4, str(error))

    def _answer(self) -> bytes:
        self.look()
        return self._watch.answer()


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    daemon = _Daemon()
    stop = _stop_signals(daemon.selector)
    daemon.notifier.send(READY="1")
    pause = min(POLL_SECONDS, (daemon.notifier.watchdog_seconds or 4 * POLL_SECONDS) / 4)
    next_look = time.monotonic() + POLL_SECONDS
    while True:
        # The loop itself is what the watchdog watches: a look that hangs ends it.
        daemon.notifier.send(WATCHDOG="1")
        for key, _ in daemon.selector.select(timeout=pause):
            if key.data is stop:
                daemon.notifier.send(STOPPING="1")
                return
            key.data()
        daemon.server.drop_slow_clients()
        if time.monotonic() >= next_look:
            daemon.look()
            next_look = time.monotonic() + POLL_SECONDS


def tell(level: int, line: str) -> None:
    """A line for the journal, with its level (sd-daemon(3))."""
    # Without a journal it goes on looking and answering.
    with contextlib.suppress(OSError):
        print(f"<{level}>{printable(line, 2000)}", file=sys.stderr, flush=True)


def _stop_signals(selector: selectors.BaseSelector) -> object:
    """Turn SIGTERM and SIGINT into something to select on; returns what stands for it."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    stop = object()
    selector.register(reader, selectors.EVENT_READ, stop)
    return stop
