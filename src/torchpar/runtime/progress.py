"""Counts optimizer steps, samples and the time spent waiting for batches, and tells torchpard now and then.

In the job's process, between two of its steps: so it never waits, and where nobody listens nothing is lost but the
message. What it sends are totals; a rate is for the one who hears two of them.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import socket
import time
from collections import deque
from typing import Any

from torchpar.environment import JOB_SOCKET, JobSettings, RankSettings
from torchpar.runtime.observed import say

VERSION = 1

# Seconds between two messages; each process adds a part of `_SPREAD` that is its own, for the socket's queue holds
# no more than ten messages and many ranks begin at once.
PERIOD = 2.0
_SPREAD = 0.5
# Until it is tried again, where the queue was full.
_RETRY = 0.2
# One for each parameter is not unheard of; a script that makes a new one for every step is bounded.
_MOST_OPTIMIZERS = 10000


def install(torch: Any, settings: JobSettings, rank: RankSettings) -> None:
    """Count what this process does from now on. A torch without the places to count at is left as it is."""
    meter = Meter(rank.local_rank)
    try:
        _count_batches(torch, meter)
        _count_steps(torch, meter)
    except AttributeError as error:
        say(f"steps and samples are not counted: this torch has another inside ({error})")


class Meter:
    """The totals of this process, and when they are sent next.

    Samples and batches count where gradients are recorded: an evaluation is no training. `waited` is the time in
    seconds that any loader let this process wait.
    """

    def __init__(self, local_rank: int) -> None:
        self.steps = 0
        self.samples = 0
        self.batches = 0
        self.waited = 0.0
        self._local_rank = local_rank
        self._round: set[int] = set()
        pid = os.getpid()
        # By multiplication with a large prime neighbours are far from each other; no random numbers of the script's.
        self._period = PERIOD + _SPREAD * (pid * 2654435761 % 1000) / 1000
        self._next = time.monotonic() + self._period
        self._socket: socket.socket | None = None
        # A forked worker counts for itself, and for nobody.
        self._off = False
        os.register_at_fork(after_in_child=self._stop)

    def step(self, optimizer: Any) -> None:
        """An optimizer has made a step. Several optimizers that take turns make one step together."""
        if self._off:
            return
        name = id(optimizer)
        if name in self._round or not self._round or len(self._round) >= _MOST_OPTIMIZERS:
            self.steps += 1
            self._round = {name}
        else:
            self._round.add(name)
        now = time.monotonic()
        if now >= self._next:
            self._send(now)

    def batch(self, samples: int, waited: float, now: float, *, training: bool) -> None:
        """A loader has given a batch, after so many seconds."""
        if self._off:
            return
        self.waited += waited
        if training:
            self.samples += samples
            self.batches += 1
        if now >= self._next:
            self._send(now)

    def _send(self, now: float) -> None:
        message = {
            "version": VERSION,
            "local_rank": self._local_rank,
            "time": now,
            "steps": self.steps,
            "samples": self.samples,
            "batches": self.batches,
            "waited": self.waited,
        }
        self._next = now + self._period
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.sendto(json.dumps(message).encode(), socket.MSG_DONTWAIT, JOB_SOCKET)
        except BlockingIOError:
            self._next = now + _RETRY * self._period
        except OSError:
            # torchpard is not there, or not to be reached from here; it may be later.
            return

    def _stop(self) -> None:
        self._off = True


def _count_steps(torch: Any, meter: Meter) -> None:
    """Hear of every step of every optimizer."""
    # torch.optim may have another thing by this name.
    module = importlib.import_module("torch.optim.optimizer")
    compiling = getattr(getattr(torch, "compiler", None), "is_compiling", None)

    def stepped(optimizer: Any, *_: Any) -> None:
        # Within a step that is compiled, this would be compiled too; then the batches alone tell how far it is.
        if compiling is None or not compiling():
            meter.step(optimizer)

    register = getattr(module, "register_optimizer_step_post_hook", None)
    if register is not None:
        register(stepped)
        return
    _wrap_steps(module.Optimizer, stepped)


def _wrap_steps(optimizer_class: Any, stepped: Any) -> None:
    """The same for a torch without hooks: each class of optimizers has its step wrapped when the first one is made."""
    initialize = optimizer_class.__init__

    @functools.wraps(initialize)
    def __init__(optimizer: Any, *arguments: Any, **named: Any) -> None:
        initialize(optimizer, *arguments, **named)
        kind = type(optimizer)
        step = kind.step
        if "_torchpar_counted" in step.__dict__:
            return

        @functools.wraps(step)
        def counted(self: Any, *arguments: Any, **named: Any) -> Any:
            result = step(self, *arguments, **named)
            # Not where a class's own step calls that of the class it is made from: once is enough.
            if type(self).step is counted:
                stepped(self)
            return result

        counted._torchpar_counted = True  # type: ignore[attr-defined]
        kind.step = counted

    optimizer_class.__init__ = __init__


def _count_batches(torch: Any, meter: Meter) -> None:
    """Time every batch of every loader, and count its samples by the indices that were asked for.

    So it does not matter what form the batches have. Batches come in the order of their indices.
    """
    from torch.utils.data import dataloader

    iterator_class = dataloader._BaseDataLoaderIter
    next_index, next_batch = iterator_class._next_index, iterator_class.__next__
    clock, recording = time.monotonic, torch.is_grad_enabled

    @functools.wraps(next_index)
    def _next_index(iterator: Any) -> Any:
        index = next_index(iterator)
        state = iterator.__dict__
        sampler = state["_sampler_iter"]
        if state.get("_torchpar_sampler") is not sampler:
            # A new epoch of the same iterator; what was left of the one before is no longer wanted.
            state["_torchpar_sampler"], state["_torchpar_sizes"] = sampler, deque()
        # One index, without automatic batches, may be one sample or a batch that was made before: unknown.
        state["_torchpar_sizes"].append(len(index) if isinstance(index, (list, tuple)) else 0)
        return index

    @functools.wraps(next_batch)
    def __next__(iterator: Any) -> Any:
        begin = clock()
        batch = next_batch(iterator)
        now = clock()
        sizes = iterator.__dict__.get("_torchpar_sizes")
        meter.batch(sizes.popleft() if sizes else 0, now - begin, now, training=recording())
        return batch

    iterator_class._next_index, iterator_class.__next__ = _next_index, __next__
