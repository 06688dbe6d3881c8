"""Takes SIGTERM and SIGUSR1 for the request to stop, in a job that has no unit: nobody runs an ExecStop= for it.

A batch scheduler sends them (scancel, sbatch --signal=USR1@60), a container's runtime sends SIGTERM. A script that has
its own handler for one keeps it, and one that never asks for the request is ended by them as by any other launcher.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from torchpar.contract.errors import JobSettingsError
from torchpar.contract.job import parse_job_environment
from torchpar.contract.journal import Priority, say

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """The signals that this process takes for the request, if any, and whether one has come.

    `alone`: they come to the first process of the job only, which passes them on to its ranks.
    """

    def __init__(self) -> None:
        """Takes none yet."""
        self.came = False
        self.taken = False
        self.alone = False
        self._mask: set[int] = set()

    def take(self) -> None:
        """Takes those that the script has left alone, where the job has no unit."""
        try:
            settings = parse_job_environment(os.environ)
        except JobSettingsError:
            return  # said when torch is imported
        if self.taken or not settings or not settings.signals:
            return
        if threading.current_thread() is not threading.main_thread():
            say("stop_requested() is called first in a thread: SIGTERM ends this process at once", Priority.WARNING)
            return
        self.taken, self.alone = True, settings.signals == "main"
        for number in NUMBERS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self.heard)
        # multiprocessing ends what it has forked by SIGTERM, at any moment.
        os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._give_back)

    def heard(self, number: int = 0, frame: Any = None) -> None:
        """Notes that one has come."""
        self.came = True

    def _hold(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)

    def _let_go(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _give_back(self) -> None:
        # In a child that a thread has forked that thread is the main one.
        for number in NUMBERS:
            if signal.getsignal(number) == self.heard:
                signal.signal(number, signal.SIG_DFL)
        self._let_go()


def spare_worker() -> None:
    """Lets a loader worker stay until its rank has saved, though a scheduler's signal goes to every process.

    Its rank ends it by an event; where the rank is gone it ends by itself, within seconds.
    """
    # torch has given it a handler for SIGTERM, by which it dies of anybody's but its parent's.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


signals = Signals()
