"""Takes SIGTERM and SIGUSR1 for the request to stop, in a job that has no unit: nobody runs an ExecStop= for it.

A batch scheduler sends them (scancel, sbatch --signal=USR1@60), a container's runtime sends SIGTERM. A script that has
its own handler for one keeps it, and one that never asks for the request is ended by them as by any other launcher.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import threading
from typing import Any

from torchpar.contract.errors import JobSettingsError
from torchpar.contract.job import parse_job_environment
from torchpar.contract.journal import Priority, say

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)

# From a rank to its loader worker, which does not end by SIGTERM then; schedulers send no such signal.
END = int(signal.SIGRTMAX) - 1


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

    Its rank ends it by an event, and by END where that takes too long; where the rank is gone it ends by itself, within
    seconds. The programs that it runs are ended by the signals as ever.
    """
    # torch has given it a handler for SIGTERM, in C, by which it ends at once where its parent has sent that, and dies
    # of anybody else's. A handler of Python knows no sender, and waits for what the worker computes.
    libc = ctypes.CDLL(None)
    handler = ctypes.create_string_buffer(1024)  # a struct sigaction has less than 200 bytes, the function's first
    libc.sigaction(int(signal.SIGTERM), None, handler)
    signal.signal(END, lambda number, frame: os._exit(0))
    if any(handler.raw[: ctypes.sizeof(ctypes.c_void_p)]):
        libc.sigaction(END, handler, None)
    for number in NUMBERS:
        if number == signal.SIGTERM or signal.getsignal(number) is signal.SIG_DFL:
            # Not SIG_IGN, which what it runs would inherit.
            signal.signal(number, lambda number, frame: None)
            signal.siginterrupt(number, False)


def make_ending(terminate: Any) -> Any:
    """Makes the method of multiprocessing that sends a process SIGTERM one that ends a spared worker, too."""
    end, is_spared = END, _is_spared

    def _terminate(self: Any) -> None:
        terminate(self)
        if is_spared(self.pid):
            self._send_signal(end)

    return _terminate


def _is_spared(pid: int) -> bool:
    """Says whether a process has a handler for END; whoever has none would die of it."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status.read(), re.MULTILINE)
    except OSError:
        return False
    return bool(caught and int(caught[1], 16) >> (END - 1) & 1)


signals = Signals()
