"""Measures how long no request has come, and makes the mark by which a service that lends its CPUs says so.

See contract/serving.py.

The first process makes the mark, as it knows of all processes; whichever has a request then removes it, at once, by
which torchpard hears that the CPUs are needed. The server itself keeps them all the time: where torchpard does not
answer, it shares them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

from torchpar.contract.given import read_given
from torchpar.contract.job import JobSettings
from torchpar.contract.journal import Priority, say
from torchpar.contract.paths import GIVEN
from torchpar.contract.serving import IDLE_FILE

# Without a request for so long a service is idle.
IDLE_SECONDS = 10.0
# So long after a request came, and so long after the last one, the mark may be made by who does not know of it yet.
_LATE_SECONDS = 3.0
# Within which torchpard has taken back what was lent, if it is there.
_BACK_SECONDS = 2.0


def _mark(environ: Mapping[str, str]) -> str:
    folder = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return os.path.join(folder, IDLE_FILE) if folder else ""


class Requests:
    """The requests of one process, each of which removes the mark where it may be there."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Removes nothing yet."""
        self._path = _mark(environ)
        self._last = self._until = time.monotonic()

    def came(self, now: float) -> None:
        """Notes that a request has come at `now`, in seconds of the monotonic clock."""
        if now - self._last > IDLE_SECONDS / 2:
            self._until = now + _LATE_SECONDS
        self._last = now
        if now <= self._until and self._path:
            try:
                os.unlink(self._path)
            except OSError:
                return

    def quiet_seconds(self, now: float, *, open_requests: bool) -> float:
        """Returns how long there has been no request: 0 while one is not answered."""
        if open_requests:
            self._last = now
        return now - self._last


class IdleMark:
    """The mark of a whole service, and what its first process says where torchpard does not take back what it lent."""

    def __init__(self, settings: JobSettings, environ: Mapping[str, str], *, folder: str = GIVEN) -> None:
        """Makes no mark yet, and never where the service lends nothing."""
        self._path = _mark(environ) if settings.serve and settings.serve.lend else ""
        self._unit, self._invocation, self._folder = settings.service, environ.get("INVOCATION_ID"), folder
        self._made = False
        self._awake_since: float | None = None

    def tell(self, quiet: Iterable[float], now: float) -> None:
        """Makes or removes the mark by how long each process has had no request, at `now`; without one it is not idle.
        """
        seconds = min(quiet, default=0.0)
        try:
            if not self._path:
                return
            if seconds >= IDLE_SECONDS:
                if not self._made:
                    os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
                self._made, self._awake_since = True, None
            elif self._made:
                self._made, self._awake_since = False, now
                os.unlink(self._path)
        except OSError:
            # It is gone already, or there is no room for it.
            pass
        self._doubt(now)

    def _doubt(self, now: float) -> None:
        """Says once that torchpard has not taken back what was lent."""
        if self._awake_since is None or now - self._awake_since < _BACK_SECONDS:
            return
        self._awake_since = None
        given = read_given(self._unit, self._folder)
        if given and given.invocation == self._invocation and given.lent_to:
            say(
                f"torchpard does not answer: {given.lent_to} may still compute on CPUs {given.cpus}, which were lent",
                Priority.WARNING,
            )
