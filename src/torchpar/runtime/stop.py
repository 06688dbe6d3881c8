"""A request to stop, and the ranks' agreement on it: all of them see it at the same call, or none does.

systemd's stop comes as SIGUSR1, to the ranks only and only to processes that have asked for it here; see
torchpar-runtime(7). Ranks agree over gloo, whatever the script itself uses: that needs no accelerator.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from torchpar.runtime.gang import SAVE, ask
from torchpar.runtime.observed import say

# Ranks exchange a number at one call in some, which costs them 0.1 to 1 ms each: the calls of about this time, and no
# more than so many, for the next ones may take far longer than the last.
SECONDS_BETWEEN = 0.1
MOST_CALLS_BETWEEN = 10


class StopRequest:
    """Whether this process shall stop; one for a process, as signal handlers are."""

    def __init__(self) -> None:
        """Nothing is asked or set before the first call of `seen_by_all`."""
        self.asking = False
        self.wanted = False
        self.agreed = False
        self.agreement: Agreement | None = None

    def seen_by_all(self) -> bool:
        """Whether a stop has been requested of any rank; the same answer in all ranks at the same call."""
        if not self.asking:
            self._ask()
        if not self.agreed:
            group = whole_group()
            if group is not None:
                if self.agreement is None or self.agreement.whole is not group:
                    self.agreement = Agreement(group)
                self.agreed = self.agreement.reached(self.wanted)
            elif os.environ.get("WORLD_SIZE", "1") == "1":
                self.agreed = self.wanted
            # Else this is a rank that has no process group yet, and would leave the others waiting for it.
        return self.agreed

    def _ask(self) -> None:
        self.asking = True
        try:
            signal.signal(SAVE, self._want)
        except ValueError:
            say("stop_requested() was first called outside the main thread: a stop comes as SIGTERM")
            return
        # A system call of some library's that does not expect a signal goes on by itself.
        signal.siginterrupt(SAVE, False)
        if directory := os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
            ask(directory)

    def _want(self, number: int, frame: Any) -> None:
        self.wanted = True


class Agreement:
    """What the ranks of a process group exchange; made in all of them at the same call, as all that follows."""

    def __init__(self, whole: Any) -> None:
        """`whole` is the group of all ranks."""
        import torch.distributed

        self.torch = torch
        self.whole = whole
        self.group = torch.distributed.new_group(backend="gloo")
        # One for all exchanges, so that gloo's thread is seldom the last to let go of it; see LAST_MOMENT in hook.py.
        self.numbers = torch.tensor([0, 0], device="cpu")
        self.first = torch.distributed.get_rank() == 0
        self.calls_left = self.calls_between = 1
        self.exchanged_at = time.monotonic()

    def reached(self, wanted: bool) -> bool:
        """Whether any rank wants to stop."""
        self.calls_left -= 1
        if self.calls_left:
            return False
        numbers = self.numbers
        numbers[0], numbers[1] = int(wanted), self._next() if self.first else 0
        self.torch.distributed.all_reduce(numbers, op=self.torch.distributed.ReduceOp.MAX, group=self.group)
        self.calls_left = self.calls_between = int(numbers[1])
        self.exchanged_at = time.monotonic()
        return bool(numbers[0])

    def _next(self) -> int:
        """After how many calls the next exchange is: the clock of one rank decides it for all."""
        seconds = (time.monotonic() - self.exchanged_at) / self.calls_between
        return max(1, min(MOST_CALLS_BETWEEN, int(SECONDS_BETWEEN / max(seconds, 1e-6))))


def whole_group() -> Any:
    """The group of all ranks, None where torch.distributed is not in use or this process is alone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.group.WORLD if distributed.get_world_size() > 1 else None


request = StopRequest()
