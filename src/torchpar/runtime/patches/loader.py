"""Gives DataLoader calls the arguments that the conf asks for, where the call leaves them out.

As if the call itself said it: LoaderWorkers=, PrefetchFactor= and PinMemory= of the conf are the script's author's word
from then on. Without one of them nothing here is installed. An IterableDataset is never given anything, as each worker
would have the whole of it. What a class made from DataLoader, or a library that builds a loader anew, names is named.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import Any

from torchpar.contract.job import JobSettings, RankSettings
from torchpar.contract.journal import say
from torchpar.runtime.patches.stand_in import replace_method

_MOST_LINES = 100


def install(torch: Any, settings: JobSettings, rank: RankSettings) -> None:
    """Watches the DataLoader calls of this process from now on, if the conf has something for them."""
    if not (rank.loader_workers or settings.prefetch_factor or settings.pin_memory):
        return
    from torch.utils.data import dataloader

    iterable, process = torch.utils.data.IterableDataset, os.getpid()
    told: set[str] = set()
    signature = inspect.signature(dataloader.DataLoader.__init__)

    def asked_for(loader: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        try:
            given = signature.bind(loader, *arguments, **named).arguments
        except TypeError:
            return {}  # a wrong call fails as it would without us
        # The processes that the script starts are its own affair.
        if isinstance(given.get("dataset"), iterable) or os.getpid() != process:
            return {}
        extra = wanted(given, settings, rank)
        if extra:
            where = caller(loader)
            if where not in told and len(told) < _MOST_LINES:
                told.add(where)
                values = ", ".join(f"{name}={value}" for name, value in extra.items())
                say(f"{where}: DataLoader(...) gets {values}, as torchpar.conf asks")
        return extra

    def make(initialize: Any) -> Any:
        def __init__(self: Any, *arguments: Any, **named: Any) -> None:
            initialize(self, *arguments, **named, **asked_for(self, arguments, named))

        return __init__

    replace_method(dataloader.DataLoader, "__init__", make)


def wanted(given: dict[str, Any], settings: JobSettings, rank: RankSettings) -> dict[str, Any]:
    """Returns the arguments to add to a call that gives those of `given`."""
    extra: dict[str, Any] = {}
    if rank.loader_workers and "num_workers" not in given:
        extra["num_workers"] = rank.loader_workers
    workers = given.get("num_workers", extra.get("num_workers", 0))
    # A number, as a script may hand anything over: that is for torch to refuse.
    if settings.prefetch_factor and "prefetch_factor" not in given and isinstance(workers, int) and workers > 0:
        extra["prefetch_factor"] = settings.prefetch_factor
    if settings.pin_memory and "pin_memory" not in given:
        extra["pin_memory"] = True
    return extra


def caller(loader: Any = None) -> str:
    """Returns file:line of the script's code that makes or iterates a loader, past torch and classes made from it."""
    frame: Any = sys._getframe(1)
    found = frame
    while frame:
        code = frame.f_code
        maker = code.co_name == "__init__" and frame.f_locals.get(code.co_varnames[0]) is loader
        if not maker and frame.f_globals.get("__name__", "").partition(".")[0] not in ("torch", "torchpar"):
            found = frame
            break
        frame = frame.f_back
    return f"{found.f_code.co_filename}:{found.f_lineno}"
