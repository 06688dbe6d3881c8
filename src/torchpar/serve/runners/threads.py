"""The threads that a model left behind when it was loaded: a fork has none of them, and waits for them for ever."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Container

TASKS = "/proc/self/task"
# jemalloc's own, which it stops before a fork and starts again after it, on both sides.
SAFE = "jemalloc_bg_thd"
# A thread that was joined has not quite ended, for the kernel.
ENDING_SECONDS = 0.1


def left_behind(before: Container[int]) -> str:
    """Names the threads beside this one, by their names in Python or else in the kernel, "" if there are none.

    before: those that were there before, by their kernel's numbers.
    """
    until = time.monotonic() + ENDING_SECONDS
    while (found := _added(before)) and time.monotonic() < until:
        time.sleep(0.01)
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    counts = Counter(names.get(task, f"{name}, of native code") for task, name in found.items())
    return "; ".join(name if count == 1 else f"{count} {name}" for name, count in sorted(counts.items()))


def _added(before: Container[int]) -> dict[int, str]:
    # tqdm's looks after bars that stand still; nobody waits for it.
    idle = {thread.native_id for thread in threading.enumerate() if type(thread).__name__ == "TMonitor"}
    return {task: name for task, name in others().items() if task not in before and task not in idle}


def others() -> dict[int, str]:
    """Returns the names of all threads beside this one, by their kernel's numbers."""
    found = {}
    for task in map(int, os.listdir(TASKS)):
        try:
            with open(f"{TASKS}/{task}/comm", encoding="utf-8", errors="replace") as comm:
                name = comm.read().strip()
        except OSError:
            continue  # it has ended
        if task != threading.get_native_id() and name != SAFE:
            found[task] = name
    return found
