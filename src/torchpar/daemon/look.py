"""Looks in a process of its own: a job, a disk or a systemd that holds whoever looks holds that process alone.

The child ends by itself when its time is over (SIGALRM, whose default action ends it even where the kernel waits for a
lock that somebody else has), and gives its answer through a pipe: a line at once, where it has one, and the rest at its
end. Nothing that it changes in its memory is seen outside.
"""

from __future__ import annotations

import os
import selectors
import signal
import traceback
from collections.abc import Callable

Write = Callable[[bytes], None]
Work = Callable[[Write], None]

# stdin, stdout and stderr stay open in the child.
_FIRST = 3
# Seconds after which a child that should have ended by its own clock is left alone.
_GRACE = 5


class Looks:
    """Looks of one kind, one at a time, each with its number. `took` gets the number and the lines of each that ends.

    A look that has begun does not count for whoever asks later: it may have looked before the change that is asked for.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        work: Work,
        seconds: int,
        took: Callable[[int, list[bytes]], None],
        *,
        clock: Callable[[], float],
    ) -> None:
        self.number = 0
        self._selector, self._work, self._seconds, self._took, self._clock = selector, work, seconds, took, clock
        self._look: Look | None = None
        self._until = 0.0
        self._again = False

    def want(self) -> int:
        """Asks for a look; returns the number of the first one that begins from now on."""
        if self._look is None:
            self._begin()
            return self.number
        self._again = True
        return self.number + 1

    @property
    def is_under_way(self) -> bool:
        """Says whether one has begun and not ended."""
        return self._look is not None

    def lines(self) -> list[bytes]:
        """Returns the whole lines so far of the look that is under way; none where there is none."""
        return self._look.lines() if self._look else []

    def end_if_late(self) -> None:
        """Gives up a look that not even its own clock could end; begins one that could not begin before."""
        if self._look and self._clock() > self._until:
            self._end()
        elif self._again and self._look is None:
            self._begin()

    def _begin(self) -> None:
        self.number += 1
        self._again = False
        try:
            self._look = Look(self._work, self._seconds)
        except OSError:
            # No process or memory is left for it; the next poll is another chance.
            self._again = True
            return
        self._until = self._clock() + self._seconds + _GRACE
        self._selector.register(self._look, selectors.EVENT_READ, self._heard)

    def _heard(self) -> None:
        if self._look and self._look.read():
            self._end()

    def _end(self) -> None:
        assert self._look
        look, self._look = self._look, None
        self._selector.unregister(look)
        look.close()
        self._took(self.number, look.lines())
        if self._again and self._look is None:
            self._begin()


class Look:
    """One look that is under way. `fileno()` can be read when it has something to say."""

    def __init__(self, work: Work, seconds: int) -> None:
        """Begins it: `work` is called in a child with a function that writes to this process. Raises OSError."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            child = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if child == 0:
            _be_child(work, writer, seconds)
        os.close(writer)
        os.set_blocking(reader, False)
        self._reader = reader
        self._data = bytearray()

    def fileno(self) -> int:
        """Returns the file descriptor to select on."""
        return self._reader

    def read(self) -> bool:
        """Takes what has come; says whether that was the end."""
        while True:
            try:
                piece = os.read(self._reader, 2**16)
            except BlockingIOError:
                return False
            if not piece:
                return True
            self._data += piece

    def lines(self) -> list[bytes]:
        """Returns the whole lines so far."""
        return bytes(self._data).split(b"\n")[:-1]

    def close(self) -> None:
        """Forgets it. One that goes on ends by its own clock, and is nobody's to wait for."""
        os.close(self._reader)
        reap()


def reap() -> None:
    """Lets the children that have ended go, also those that were forgotten. This process has no others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _be_child(work: Work, writer: int, seconds: int) -> None:
    """Does the work and ends; never returns."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        # It is for the loop alone, and systemctl sends it to all processes of a service; programs inherit this.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.alarm(seconds)
        # A client of the parent's waits until every copy of its connection is closed.
        os.closerange(_FIRST, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))

        def write(data: bytes) -> None:
            while data:
                data = data[os.write(writer, data) :]

        work(write)
        status = 0
    except BaseException:  # noqa: BLE001  # whatever it is, this process ends here, and never in its parent's loop
        os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
    finally:
        os._exit(status)
