"""Tells systemd's watchdog that all processes of the service make progress, and ends one that makes none."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence

from torchpar.contract.journal import Priority, say
from torchpar.contract.notify import Notifier
from torchpar.serve.supervisor.member import Member


def watch(members: Sequence[Member], notifier: Notifier, period: float) -> None:
    """WATCHDOG=1 while all make progress. Who makes none for half of the period is told to end, with a traceback.

    Where that does not help, as with one that is stopped, systemd ends the service and starts it again.
    """
    now = time.monotonic()
    stuck = [process for process in members if process.ready and now - process.heard > period / 2]
    for process in stuck:
        if not process.told_to_end and process.child:
            process.told_to_end = True
            seconds = now - process.heard
            say(f"process {process.number} makes no progress for {seconds:.0f} s: SIGABRT", Priority.WARNING)
            process.child.send_signal(signal.SIGABRT)
    if not stuck:
        notifier.send(WATCHDOG="1")
    asyncio.get_running_loop().call_later(period / 8, watch, members, notifier, period)
