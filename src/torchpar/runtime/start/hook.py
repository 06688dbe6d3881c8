"""Sets the plan's numbers once a script has imported torch, and tells what is then true.

Takes the torch that the script imported and imports none itself. What the service's own environment or the script says
goes before the plan. It sets nothing that fails only later, in the middle of a run.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Set
from typing import Any

from torchpar.contract.errors import JobSettingsError
from torchpar.contract.job import JobSettings, RankSettings, parse_job_environment
from torchpar.contract.journal import Priority, say
from torchpar.runtime import given
from torchpar.runtime.observed import observe, tell
from torchpar.runtime.patches import loader, progress, workers
from torchpar.runtime.patches.stand_in import StandIn
from torchpar.runtime.ranks.store import lacks_libuv

# Seconds. gloo's thread lets go of a tensor a moment after its operation is done, and needs the interpreter for that;
# where the interpreter is ending just then, the process aborts. Of jobs of two ranks that ended right after their last
# step, with torch 2.13, 2 of 12 did, 3 of 24 with destroy_process_group() at the end, and none of 24 with this pause.
LAST_MOMENT = 0.05


def torch_imported(torch: Any, cpus: Set[int]) -> None:
    """Sets torch as planned for this process, and watches its loaders; logs and records what then holds.

    `cpus` are those that the process could use before torch was imported.
    """
    local_rank = _local_rank()
    try:
        settings = parse_job_environment(os.environ)
    except JobSettingsError as error:
        settings = None
        say(str(error), Priority.ERROR)
    rank = settings.rank(local_rank) if settings else None
    if settings and not rank:
        say(
            f"the plan of {settings.service} has no rank {local_rank} (LOCAL_RANK); nothing is set in torch",
            Priority.ERROR,
        )
    if settings and rank:
        threads = given.now(settings, rank, os.environ).threads
        ours = _set_threads(torch, settings, rank, threads)
        follower = given.Threads(torch, settings, rank, threads) if ours else None
        _set_interop_threads(torch, settings.interop_threads)
        if settings.cudnn_benchmark is not None:
            torch.backends.cudnn.benchmark = settings.cudnn_benchmark
        progress.install(torch, rank, follower.follow if follower else lambda now: None)
        loader.install(torch, settings, rank)
        workers.install(torch, settings, rank, cpus)
        if follower:
            follower.watch_script()
        if settings.endpoint and "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" in os.environ:
            # A scheduler has started this rank, and no torchrun has told it what this torch is built with.
            if lacks_libuv(torch.distributed.TCPStore):
                os.environ.setdefault("USE_LIBUV", "0")
        if len(settings.ranks) > 1 or settings.nodes != "1":
            atexit.register(time.sleep, LAST_MOMENT)
    tell(observe(torch, local_rank))


def _local_rank() -> int:
    """Returns this process's number on its host, as torchrun counts; 0 for a process that is alone."""
    text = os.environ.get("LOCAL_RANK", "0")
    if not text.isdecimal():
        say(f"LOCAL_RANK={text} is not a number; taken as 0", Priority.WARNING)
        return 0
    return int(text)


def _set_threads(torch: Any, settings: JobSettings, rank: RankSettings, threads: int) -> bool:
    """Sets the compute threads, unless an administrator says otherwise; returns whether the number is torchpar's."""
    stated = os.environ.get("OMP_NUM_THREADS")
    if stated is not None and not settings.is_planned(rank, stated):
        say(
            f"OMP_NUM_THREADS={stated} is not the plan's ({rank.threads}): it stays, and the plan's is not set",
            Priority.WARNING,
        )
        return False
    # Where the environment has done it already there is nothing to do, and that is better: in builds with XNNPACK the
    # call starts a thread pool, and torch then warns in every forked DataLoader worker that it leaks it.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return True


def _set_interop_threads(torch: Any, threads: int) -> None:
    """Sets the interop threads, and replaces the function by which a script sets them.

    torch lets this be set once only and raises RuntimeError the second time. A script that sets it too must go on
    working, so its call becomes a line in the journal; nothing can undo the first.
    """
    if torch.get_num_interop_threads() == threads:
        return
    try:
        torch.set_num_interop_threads(threads)
    except RuntimeError as error:
        # Something that torch itself imports, such as a backend's plug-in, was faster.
        say(f"the plan's {threads} interop threads are not set: {error}", Priority.WARNING)
        return

    def set_num_interop_threads(wanted: int) -> None:
        if wanted != threads:
            caller = sys._getframe(2)
            say(
                f"{caller.f_code.co_filename}:{caller.f_lineno} asks for {wanted} interop threads: the plan's"
                f" {threads} stays; InteropThreads= in torchpar.conf sets it",
                Priority.WARNING,
            )

    # In both places, so that it is found again by its name.
    torch.set_num_interop_threads = torch._C.set_num_interop_threads = StandIn(
        torch.set_num_interop_threads, set_num_interop_threads
    )
