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
from collections.abc import Mapping, MutableMapping
from typing import Any, Callable

from torchpar.contract.errors import ExitStatus
from torchpar.contract.job import JobSettings, RankSettings
from torchpar.contract.journal import Priority, say
from torchpar.runtime.binding import bind_cpus, bind_memory
from torchpar.runtime.observed import observe, say_report, write_report
from torchpar.serve.engine.metadata import READY
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.errors import ModelError, OtherFilesError, ServeError, StartError
from torchpar.serve.following import ComputeThreads
from torchpar.serve.process_count import Count, choose_count
from torchpar.serve.quiet import Requests
from torchpar.serve.supervisor.channel import Channel
from torchpar.serve.supervisor.gauge import Gauge
from torchpar.serve.supervisor.totals import Sender, from_json, merge, to_json
from torchpar.serve.tls import make_tls

# How often it says that it makes progress.
HEARTBEAT_SECONDS = 1.0

# How long the first process may take to find weights: without them each process has its own.
SHELF_SECONDS = 30.0

_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def bind(settings: JobSettings, rank: RankSettings, environ: MutableMapping[str, str], cpus: str | None = None) -> None:
    """Sets this process's CPUs, memory nodes, threads and accelerators. Call it before torch is imported.

    cpus: those that it has for now, in place of the rank's.
    """
    bind_cpus(cpus or rank.cpus)
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


def engine_options(
    settings: JobSettings, rank: RankSettings, environ: Mapping[str, str], threads: int | None = None
) -> EngineOptions:
    """Makes the options of one process's engine. threads: those of it, where several processes share the rank's."""
    serve = settings.serve
    assert serve
    return EngineOptions(
        name=settings.service.partition("@")[2].rpartition(".")[0],
        model=serve.model,
        handler=serve.handler,
        workers=threads or serve.workers or rank.threads,
        backend=serve.backend,
        max_batch=serve.max_batch,
        max_queue=serve.max_queue,
        own=serve.own,
        gpus=len(rank.gpus),
        state=environ.get("STATE_DIRECTORY", "").partition(":")[0] or None,
    )


def serve(settings: JobSettings, rank: RankSettings, channel: socket.socket, gauge: Gauge) -> int:
    """Serves until told to stop; returns the exit status."""
    # What a model starts has none of them: the end of this process would not be seen.
    channel.set_inheritable(False)
    os.set_inheritable(gauge.fd, False)
    # A SIGABRT of the first process, when this one hangs, leaves a traceback of every thread in the journal.
    faulthandler.enable()
    # So does a SIGTERM, which comes to it where the start is over before it is done.
    faulthandler.register(signal.SIGTERM, chain=True)
    try:
        return asyncio.run(_Serving(settings, rank, Channel(channel), gauge).run())
    except (ModelError, StartError) as error:
        say(str(error))
        return ExitStatus.CONFIG


class _Serving:
    """The life of one process: load, serve, reload, drain."""

    def __init__(self, settings: JobSettings, rank: RankSettings, channel: Channel, gauge: Gauge) -> None:
        self._settings = settings
        self._rank = rank
        self._channel = channel
        self._gauge = gauge
        self._engine: Any
        self._front: Any
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Future[float]
        self._hurry: asyncio.Future[float]
        self._go: asyncio.Future[dict[str, Any]]
        self._requests = Requests(os.environ)
        self._served: Any = None  # what the first process knows to be served here
        self._index = 0  # among the processes of its rank
        self._request = 0.0  # seconds that one costs; 0: nobody wants to know
        self._count = Sender(lambda news, names: channel.send(counters=news, names=names))
        self._weights: dict[str, asyncio.Future[int | None]] = {}
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        # By the name of what makes a message one of its kind.
        self._takers: dict[str, Callable[[dict[str, Any]], object]] = {
            "do": self._take_order,
            "asked": self._take_answer,
            "shelf": self._take_weights,
            "connection": self._take_connection,
            "go": self._take_go,
            "alone": lambda message: self._report(1),
            "unbatched": lambda message: self._engine.end_batching(message["unbatched"]),
            "totals": self._take_totals,
            "setting": lambda message: self._front.service.take(message["setting"]),
            "usage": self._take_usage,
            "leave": self._take_leave,
            "stop": self._take_stop,
        }

    async def run(self) -> int:
        """Returns the exit status."""
        # Not before bind(): this imports torch.
        from torchpar.serve.engine.shared import SharedEngine
        from torchpar.serve.front import Front
        from torchpar.serve.request_cost import measure_request

        self._loop = asyncio.get_running_loop()
        self._stop, self._hurry = self._loop.create_future(), self._loop.create_future()
        self._go = self._loop.create_future()
        # The first messages are there before the process is.
        told = {**(self._channel.receive() or {}), **(self._channel.receive() or {})}
        self._index = told["index"]
        self._channel.send(pid=os.getpid())
        self._loop.add_reader(self._channel, self._hear)
        options = engine_options(self._settings, self._rank, os.environ, told["threads"])
        self._engine = SharedEngine(options, self._tell_others)
        assert self._settings.serve
        if self._settings.serve.lend:
            self._engine.came = self._requests.came
        self._front = front = Front(self._engine, make_tls(os.environ))
        front.service.tell = self._tell_setting
        front.server.state.tell_load = self._gauge.set_load
        try:
            await self._engine.prepare(told["like"], told["unloaded"], told["unbatched"])
        except OtherFilesError as error:
            self._channel.send(differs=str(error))
            return ExitStatus.DIFFERS
        if told["count"]:
            self._request = await measure_request()
        # Nobody is answered before it is certain that the others serve the same.
        self._send_serves(loaded=True)
        go = await self._go
        processes = go.get("processes", 1)
        if processes > 1:
            await self._engine.share_weights(self._exchange_weights)
            self._send_serves()
        follows = ComputeThreads.may_follow(self._settings, self._rank)
        self._engine.open(
            go.get("threads"),
            ComputeThreads(self._settings, self._rank, index=self._index, processes=processes) if follows else None,
        )
        self._report(processes)
        await front.start(())
        untried = sorted({entry.name for entry in self._engine.index() if entry.state == READY and entry.reason})
        self._channel.send(ready=True, untried=untried)
        self._beat()
        drain = self._loop.create_task(self._drain(front, await self._stop))
        await asyncio.wait((drain, self._hurry), return_when=asyncio.FIRST_COMPLETED)
        if not drain.done():
            await asyncio.wait((drain,), timeout=self._hurry.result())
            drain.cancel()
        return ExitStatus.DONE

    def _report(self, processes: int) -> None:
        """Tells what holds in this process; the first of a rank tells it of those beside it too: for all at once."""
        report = observe(sys.modules["torch"], self._rank.local_rank)
        report = dataclasses.replace(report, threads=self._engine.options.workers)
        say_report(report)
        if not self._index:
            assert (serve := self._settings.serve)
            count = self._find_count()
            why = f"Processes={serve.processes}" if serve.processes and not count.alone else count.why
            if processes > 1:
                report = dataclasses.replace(report, threads=serve.workers or self._rank.threads)
            write_report(dataclasses.replace(report, processes=processes, why=why))

    def _find_count(self) -> Count:
        """Finds how many processes this one's rank should have."""
        assert (serve := self._settings.serve)
        threads = serve.workers or self._rank.threads
        if writers := self._engine.writers():
            return Count(1, f"{', '.join(writers)} must be in one process, for it writes to itself", alone=True)
        if not serve.own:
            return Count(1, "others use its CPUs too, and several processes would have smaller batches")
        row = self._engine.row_seconds()
        if row is None:
            return Count(1, "processes of their own compute its models")
        return choose_count(threads, self._request, row, self._engine.unshared_bytes())

    def _send_serves(self, **message: Any) -> None:
        message["unbatched"] = list(self._engine.unbatched())
        count = self._find_count()
        message.update(count=count.count, alone=count.alone, weights=self._engine.shared_weights())
        message["size"] = self._engine.weights_bytes()
        self._served = self._engine.serves()
        if not self._channel.send(serves=self._served, **message):
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
        if self._tasks and self._engine.serves() != self._served:
            self._send_serves()  # a load of several models may hang at one of them, and the others answer already
        if unbatched := list(self._engine.unbatched()):
            self._channel.send(unbatched=unbatched)
        quiet = self._requests.quiet_seconds(self._loop.time(), open_requests=self._engine.has_open_requests())
        self._channel.send(usage=self._front.server.state.usage(), quiet=quiet)
        self._count(to_json(self._engine.counters_here()))
        self._loop.call_later(HEARTBEAT_SECONDS, self._beat)

    def _hear(self) -> None:
        while message := self._channel.receive():
            for name, take in self._takers.items():
                if name in message:
                    take(message)
        if message is None:
            # The first process is gone, and with it whoever could start this service in order: systemd does it anew.
            os._exit(ExitStatus.FAILED)

    def _take_order(self, message: dict[str, Any]) -> None:
        task = self._loop.create_task(self._do(message["do"], message["model"], message["number"]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take_answer(self, message: dict[str, Any]) -> None:
        if message["asked"] in self._asked:
            self._asked.pop(message["asked"]).set_result(message["wrong"])

    def _take_weights(self, message: dict[str, Any]) -> None:
        waiting, fd = self._weights.get(message["shelf"]), message.get("file")
        if waiting and not waiting.done():
            waiting.set_result(fd)
        elif fd is not None:
            os.close(fd)

    def _take_connection(self, message: dict[str, Any]) -> None:
        self._gauge.take()
        if "file" not in message:
            say("a connection is lost, for this process may open no more files: see LimitNOFILE=", Priority.WARNING)
            return
        peer = message["peer"]
        sock = socket.socket(fileno=message["file"])
        self._front.take(sock, message["connection"], tuple(peer) if isinstance(peer, list) else peer)

    def _take_go(self, message: dict[str, Any]) -> None:
        if not self._go.done():
            self._go.set_result(message)

    def _take_totals(self, message: dict[str, Any]) -> None:
        news = from_json(message["totals"])
        self._engine.totals = merge(self._engine.totals or (), news, message["names"])

    def _take_usage(self, message: dict[str, Any]) -> None:
        self._front.server.state.totals = message["usage"]
        self._front.server.state.divide_limits(message["processes"])
        self._engine.divide_limits(message["processes"])

    def _take_leave(self, message: dict[str, Any]) -> None:
        """Is not ready any more, and answers on: each answer over HTTP is its connection's last."""
        self._front.server.state.draining = True

    def _take_stop(self, message: dict[str, Any]) -> None:
        """Stops within so many seconds, or sooner than it was about to."""
        due = self._hurry if self._stop.done() else self._stop
        if not due.done():
            due.set_result(message["stop"])

    async def _exchange_weights(self, name: str, fd: int | None) -> int | None:
        """Asks the first process for weights in shared memory, or gives it some; see Exchange."""
        self._weights[name] = self._loop.create_future()
        if fd is None:
            sent = self._channel.send(shelf=name)
        else:
            sent = self._channel.send_file(fd, shelf=name)
            os.close(fd)
        try:
            return await asyncio.wait_for(self._weights[name], SHELF_SECONDS) if sent else None
        except asyncio.TimeoutError:
            return None
        finally:
            del self._weights[name]

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
        number = next(self._numbers)
        self._asked[number] = self._loop.create_future()
        self._send_serves(ask=number, verb=verb, model=model)
        return await self._asked[number]
