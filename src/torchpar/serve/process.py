"""One serving process: bound to its CPUs, with one event loop, an engine, and the protocols in front of it."""

from __future__ import annotations

import asyncio
import dataclasses
import faulthandler
import itertools
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torchpar.contract.errors import ExitStatus
from torchpar.contract.job import JobSettings, RankSettings
from torchpar.contract.journal import Priority, say
from torchpar.runtime.binding import bind_cpus, bind_memory
from torchpar.runtime.observed import observe, tell
from torchpar.serve.engine.metadata import READY
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.errors import ModelError, OtherFilesError, ServeError, StartError
from torchpar.serve.supervisor.channel import Channel
from torchpar.serve.supervisor.totals import Sender, from_json, merge, to_json
from torchpar.serve.tls import make_tls

# How often it says that it makes progress.
HEARTBEAT_SECONDS = 1.0

_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def bind(settings: JobSettings, rank: RankSettings, environ: MutableMapping[str, str]) -> None:
    """Sets this process's CPUs, memory nodes, threads and accelerators. Call it before torch is imported."""
    bind_cpus(rank.cpus)
    bind_memory(rank.numa_nodes, {other.numa_nodes for other in settings.ranks})
    settings.narrow_threads(rank, environ)
    environ.update(visible_devices(settings, rank, environ))


def visible_devices(settings: JobSettings, rank: RankSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that hide the accelerators of the service's other processes."""
    counts = [len(other.gpus) for other in settings.ranks]
    index = settings.ranks.index(rank)
    first = sum(counts[:index])
    narrowed = {}
    for name in _VISIBLE:
        devices = list(filter(None, environ.get(name, "").split(",")))
        if devices and len(devices) == sum(counts):
            narrowed[name] = ",".join(devices[first : first + counts[index]])
    return narrowed


def engine_options(settings: JobSettings, rank: RankSettings, environ: Mapping[str, str]) -> EngineOptions:
    """Makes the options of one process's engine."""
    serve = settings.serve
    assert serve
    return EngineOptions(
        name=settings.service.partition("@")[2].rpartition(".")[0],
        model=serve.model,
        handler=serve.handler,
        workers=serve.workers or rank.threads,
        backend=serve.backend,
        max_batch=serve.max_batch,
        max_queue=serve.max_queue,
        own=serve.own,
        gpus=len(rank.gpus),
        state=environ.get("STATE_DIRECTORY", "").partition(":")[0] or None,
    )


def serve(settings: JobSettings, rank: RankSettings, channel: socket.socket, sockets: Sequence[socket.socket]) -> int:
    """Serves until told to stop; returns the exit status."""
    # A SIGABRT of the first process, when this one hangs, leaves a traceback of every thread in the journal.
    faulthandler.enable()
    # So does a SIGTERM, which comes to it where the start is over before it is done.
    faulthandler.register(signal.SIGTERM, chain=True)
    try:
        return asyncio.run(_Serving(settings, rank, Channel(channel), sockets).run())
    except (ModelError, StartError) as error:
        say(str(error))
        return ExitStatus.CONFIG


class _Serving:
    """The life of one process: load, serve, reload, drain."""

    def __init__(
        self, settings: JobSettings, rank: RankSettings, channel: Channel, sockets: Sequence[socket.socket]
    ) -> None:
        self._settings = settings
        self._rank = rank
        self._channel = channel
        self._sockets = sockets
        self._engine: Any
        self._front: Any
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Future[float]
        self._hurry: asyncio.Future[float]
        self._go: asyncio.Future[bool]
        self._several = len(settings.ranks) > 1
        self._count = Sender(lambda news, names: channel.send(counters=news, names=names))
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Returns the exit status."""
        # Not before bind(): this imports torch.
        from torchpar.serve.engine.shared import SharedEngine
        from torchpar.serve.front import Front

        self._loop = asyncio.get_running_loop()
        self._stop, self._hurry = self._loop.create_future(), self._loop.create_future()
        self._go = self._loop.create_future()
        # The first message is there before the process is.
        told = self._channel.receive() or {}
        self._loop.add_reader(self._channel, self._hear)
        self._engine = SharedEngine(engine_options(self._settings, self._rank, os.environ), self._tell_others)
        serve = self._settings.serve
        grpc = serve.grpc if serve else ()
        self._front = front = Front(self._engine, make_tls(os.environ), grpc, shared=self._several)
        front.service.tell = self._tell_setting
        try:
            await self._engine.start(told.get("like"), told.get("unloaded", ()), told.get("unbatched", ()))
        except OtherFilesError as error:
            self._channel.send(differs=str(error))
            return ExitStatus.DIFFERS
        # Nobody is answered before it is certain that the others serve the same.
        self._send_serves(loaded=True)
        await self._go
        report = observe(sys.modules["torch"], self._rank.local_rank)
        tell(dataclasses.replace(report, threads=self._engine.options.workers))
        await front.start(self._sockets)
        untried = sorted({entry.name for entry in self._engine.index() if entry.state == READY and entry.reason})
        self._channel.send(ready=True, untried=untried)
        self._beat()
        drain = self._loop.create_task(self._drain(front, await self._stop))
        await asyncio.wait((drain, self._hurry), return_when=asyncio.FIRST_COMPLETED)
        if not drain.done():
            await asyncio.wait((drain,), timeout=self._hurry.result())
            drain.cancel()
        return ExitStatus.DONE

    def _send_serves(self, **message: Any) -> None:
        message["unbatched"] = list(self._engine.unbatched())
        if not self._channel.send(serves=self._engine.serves(), **message):
            say(
                "there are too many models to compare them with those of the service's other processes",
                Priority.WARNING,
            )
            self._channel.send(serves=None, **message)

    async def _drain(self, front: Any, grace: float) -> None:
        end = self._loop.time() + grace
        # As long as a connection is open, a request may be on its way.
        await front.stop(grace)
        await self._engine.stop(max(0.0, end - self._loop.time()))

    def _beat(self) -> None:
        if self._engine.live():
            self._channel.send(alive=True)
        if unbatched := list(self._engine.unbatched()):
            self._channel.send(unbatched=unbatched)
        if self._several:
            self._channel.send(usage=self._front.server.state.usage())
        self._count(to_json(self._engine.counters_here()))
        self._loop.call_later(HEARTBEAT_SECONDS, self._beat)

    def _hear(self) -> None:
        while message := self._channel.receive():
            if "do" in message:
                task = self._loop.create_task(self._do(message["do"], message["model"], message["number"]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if "asked" in message and message["asked"] in self._asked:
                self._asked.pop(message["asked"]).set_result(message["wrong"])
            if "go" in message and not self._go.done():
                self._go.set_result(True)
            if "unbatched" in message and "like" not in message:
                self._engine.end_batching(message["unbatched"])
            if "totals" in message:
                news = from_json(message["totals"])
                self._engine.totals = merge(self._engine.totals or (), news, message["names"])
            if "setting" in message:
                self._front.service.take(message["setting"])
            if "usage" in message:
                self._front.server.state.totals = message["usage"]
            if "stop" in message:
                due = self._hurry if self._stop.done() else self._stop
                if not due.done():
                    due.set_result(message["stop"])
        if message is None:
            # The first process is gone, and with it whoever could start this service in order: systemd does it anew.
            os._exit(ExitStatus.FAILED)

    async def _do(self, verb: str, model: str, number: int) -> None:
        wrong = ""
        try:
            await self._engine.do_here(verb, model)
        except ServeError as error:
            wrong = error.message
        except Exception as error:  # who asked waits for an answer, whatever happened
            traceback.print_exc()
            wrong = f"{type(error).__name__}: {error}"
        self._send_serves(did=number, wrong=wrong)

    def _tell_setting(self, change: dict[str, Any]) -> None:
        if not self._channel.send(setting=change):
            say("the log or trace settings are those of this process alone: the first process does not listen")

    async def _tell_others(self, verb: str, model: str) -> str:
        if not self._several:
            return ""
        number = next(self._numbers)
        self._asked[number] = self._loop.create_future()
        self._send_serves(ask=number, verb=verb, model=model)
        return await self._asked[number]
