"""The ranks that torchrun's agent has started in this process, and how a stop reaches them.

Only the ranks themselves get a signal, never their loader workers: torchrun signals whole process groups, and a
DataLoader whose worker was ended makes its script fail in the middle of its last save.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torchpar.runtime.observed import say

# What systemd and people stop a service with. See torchpar-runtime(7).
SAVE = signal.SIGUSR1
STOPS = (SAVE, signal.SIGTERM, signal.SIGINT)
ASKS = "stop-{}"  # the file in RUNTIME_DIRECTORY by which process {} says that it takes SIGUSR1 for a request to stop
ENDED_BY_SIGTERM = 143


class Gang:
    """Takes the signals that stop this process and hands them to the ranks.

    torchrun's agent handles SIGTERM by itself, in the main thread and in its own way. So these signals are blocked in
    every thread, from before torch is imported, and one thread waits for them. Ranks inherit that; run.py undoes it.
    """

    def __init__(self, directory: str) -> None:
        """Block the signals. `directory` is the service's RUNTIME_DIRECTORY, "" if it has none."""
        self.directory = directory
        self.care = threading.Lock()  # held by whoever may end, start or wait for ranks
        self.stopping = False
        # The processes of the ranks that were started last. A rank that names itself anew (setproctitle) overwrites
        # what /proc shows of its environment, so that nobody could tell it from there.
        self.started: frozenset[int] = frozenset()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)

    def __enter__(self) -> Gang:
        """From now on a stop is handed on."""
        threading.Thread(target=self._wait_for_signals, name="torchpar-stop", daemon=True).start()
        if self.directory:
            ask(self.directory)
        return self

    def __exit__(self, *error: Any) -> None:
        """The ranks have ended."""

    def running(self) -> list[int]:
        """The processes of the ranks that have not ended."""
        return [child for child in children() if child in self.started and not has_ended(child)]

    def _wait_for_signals(self) -> None:
        number = signal.Signals(signal.sigwait(STOPS))
        self.care.acquire()
        self.stopping = held = True
        ranks = self.running()
        if not ranks:
            # The hosts have not met yet, or the agent is only about to start the ranks: there is nothing to be saved.
            os._exit(ENDED_BY_SIGTERM)
        told: set[int] = set()
        while True:
            number = self._tell([rank for rank in ranks if rank not in told], number, told)
            if held and not ranks:
                # All have ended, and the agent has only to notice. On several hosts it then waits for the others'.
                held = False
                self.care.release()
            if again := signal.sigtimedwait(STOPS, 0.2):
                if not ranks:
                    os._exit(ENDED_BY_SIGTERM)
                number = signal.Signals(again.si_signo)
                told.clear()
            ranks = self.running()

    def _tell(self, ranks: list[int], number: signal.Signals, told: set[int]) -> signal.Signals:
        """Send the signal to ranks that have not had it; SIGTERM in place of SIGUSR1 if none of them ever asked.

        Where one rank has asked and another has not come so far, the first brings the second to a stop. Returns the
        signal that was meant.
        """
        asking = [rank for rank in ranks if asks(self.directory, rank)]
        if number == SAVE and not asking and not told:
            number = signal.SIGTERM
        receivers = asking if number == SAVE else ranks
        if receivers:
            say(f"stopping: {number.name} to {len(receivers)} of {len(ranks)} ranks")
        for rank in receivers:
            told.add(rank)
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)
        return number


def ask(directory: str) -> None:
    """Let this process be known as one that takes SIGUSR1 for a request to stop."""
    path = os.path.join(directory, ASKS.format(os.getpid()))
    try:
        with open(path, "w", encoding="ascii"):
            pass
    except OSError as error:
        say(f"{path}: cannot be written: {error.strerror}; a stop comes as SIGTERM")


def asks(directory: str, process: int) -> bool:
    """Whether a process has done so."""
    return bool(directory) and os.path.exists(os.path.join(directory, ASKS.format(process)))


def children() -> Iterator[int]:
    """The children of this process, by whichever thread (proc(5), /proc/PID/task/TID/children)."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
            yield from map(int, file.read().split())


def has_ended(process: int) -> bool:
    """Whether a process has ended, also while nobody has waited for it (proc(5), /proc/PID/stat)."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            # The name of the program, in parentheses, may hold some of its own.
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True
