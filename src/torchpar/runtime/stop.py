"""A request to stop, and the ranks' agreement on it: all of them see it at the same call.

The request is a file that ExecStop= makes; see torchpar-runtime(7). No signal is taken for it: a script may use
each for itself. Only where a job has no unit are there signals, see `signals`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from torchpar.contract.journal import Priority, say
from torchpar.runtime.signals import signals

REQUEST = "stop"
ASKS = "stop-{}"  # by which process {} says that it looks at the request

# How long ranks wait for each other where they are not at the same call, in seconds and in calls.
PATIENCE, CALLS = 5.0, 3
# Seconds from one look at what the other hosts want to the next.
PAUSE = 0.5
CLOSED = -1  # the entry after which the log of the calls counts no more


class StopRequest:
    """The request to this process to stop, on which all ranks agree."""

    def __init__(self) -> None:
        """Nothing is left behind before the first call of `seen_by_all`."""
        self.process = 0
        self.forked = False
        self.agreed = False
        self.agreement: Agreement | None = None
        self.groups = 0

    def seen_by_all(self) -> bool:
        """Says whether a stop has been requested; the same answer in all ranks at the same call."""
        if self.process != os.getpid():
            # The group of a forked process is its parent's.
            self.forked, self.process = bool(self.process), os.getpid()
            ask()
            if not self.forked:
                signals.take()
        if not self.agreed:
            group = None if self.forked else whole_group()
            if group is not None:
                if self.agreement is None or self.agreement.group is not group:
                    self.groups += 1
                    self.agreement = Agreement(group, self.groups)
                self.agreed = self.agreement.reached(requested())
            elif self.forked or os.environ.get("WORLD_SIZE", "1") == "1":
                self.agreed = requested()
            # Else this is a rank that has no process group yet, and would leave the others waiting for it.
        return self.agreed


class Agreement:
    """The call at which the ranks of a process group stop; they exchange nothing before a stop is requested.

    From then on each rank, before it returns from a call, adds the call's number to a log that all share. When each is
    in the log, they stop at the call after the highest number there: no rank can have gone further. Nobody waits, and
    nobody misses a rank in the middle of a step. One that has left its loop never logs a call; then another closes it.
    """

    def __init__(self, group: Any, number: int) -> None:
        """`group` is that of all ranks, and the `number`th of this process, as of each."""
        from torch import distributed
        from torch.distributed import distributed_c10d

        self.group = group
        self.keys = f"torchpar/stop/{number}"
        self.store = distributed_c10d._get_default_store()
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        # A file is there for all ranks of this host. A signal may have come to one of them alone.
        other_hosts = self.world_size > int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        self.elsewhere = other_hosts or signals.taken
        self.looked_at = 0.0
        self.calls = 0
        self.read = 0  # how many entries of the log
        self.calls_of: dict[int, int] = {}  # by rank, in what has been read
        self.last: int | None = None  # the call at which all stop
        # Since which time and which call this rank has been waiting for the others, then for its last call.
        self.since: tuple[float, int] | None = None

    def reached(self, wanted: bool) -> bool:
        """Says whether this call is the one at which all stop, or a later one."""
        self.calls += 1
        try:
            if self.since is None:
                if not wanted and not self._wanted_elsewhere():
                    return False
                self.since = time.monotonic(), self.calls
            if self.last is None:
                self.last = self._decide(self.since[0])
                self.since = self.since if self.last is None else (time.monotonic(), self.calls)
        except RuntimeError as error:
            self.elsewhere = False
            if self.since is None and not wanted:
                return False
            say("stopping without the other ranks: " + str(error).partition("\n")[0], Priority.WARNING)
            return True
        return self.last is not None and (self.calls >= self.last or self._is_far(self.since))

    def _decide(self, since: float) -> int | None:
        """Logs this call, and reads what has been logged before it: the same for all that read so far, or further."""
        entry = self.store.add(f"{self.keys}/entries", 1)
        late = time.monotonic() > since + PATIENCE
        self.store.add(f"{self.keys}/{entry}", CLOSED if late else self.calls * self.world_size + self.rank + 1)
        while self.read < entry:
            self.read += 1
            value = self._entry(self.read)
            if value > 0:
                call, rank = divmod(value - 1, self.world_size)
                self.calls_of[rank] = call
            if value == CLOSED or len(self.calls_of) == self.world_size:
                return max(self.calls_of.values()) + 1
        return None

    def _entry(self, number: int) -> int:
        """Reads an entry of the log; 0 if the rank that had its place has ended before it wrote."""
        until = time.monotonic() + PATIENCE
        while not (value := int(self.store.add(f"{self.keys}/{number}", 0))) and time.monotonic() < until:
            time.sleep(0.001)
        return value

    def _is_far(self, since: tuple[float, int]) -> bool:
        """Says whether this rank is far behind: it does not compute with the others, who are a call or two ahead."""
        return time.monotonic() > since[0] + PATIENCE and self.calls >= since[1] + CALLS

    def _wanted_elsewhere(self) -> bool:
        """Says whether a rank that may be asked without this one has seen a request."""
        if not self.elsewhere or time.monotonic() < self.looked_at + PAUSE:
            return False
        self.looked_at = time.monotonic()
        return bool(self.store.add(f"{self.keys}/entries", 0))


def directory() -> str:
    """Returns the service's RUNTIME_DIRECTORY, "" if it has none. systemd separates several by colons."""
    return os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]


def requested() -> bool:
    """Says whether the service is to stop."""
    if signals.came:
        return True
    place = directory()
    return bool(place) and os.path.exists(os.path.join(place, REQUEST))


def ask() -> None:
    """Lets this process be known as one that looks at the request."""
    if place := directory():
        path = os.path.join(place, ASKS.format(os.getpid()))
        try:
            with open(path, "w", encoding="ascii"):
                pass
        except OSError as error:
            say(f"{path}: cannot be written: {error.strerror}; a stop comes as SIGTERM", Priority.WARNING)


def whole_group() -> Any:
    """Returns the group of all ranks; None where torch.distributed is not in use or this process is alone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.group.WORLD if distributed.get_world_size() > 1 else None


request = StopRequest()
