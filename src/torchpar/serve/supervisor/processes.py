"""The first process of an inference service: starts those that serve, watches them, and answers for them to systemd.

It imports no torch and serves nothing itself, so little can happen to it: while it lives, a serving process that is
killed, or makes no progress, is started again by it, and the others go on.

It is long as every message and every end may come in each state of a start, a reload and a stop, and is answered here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from torchpar.contract.errors import ExitStatus
from torchpar.contract.job import JobSettings
from torchpar.contract.journal import Priority, say
from torchpar.contract.notify import Notifier
from torchpar.serve.models.identity import Serves
from torchpar.serve.quiet import IdleMark
from torchpar.serve.supervisor import control
from torchpar.serve.supervisor.accepting import Acceptor
from torchpar.serve.supervisor.agreement import alike, find_model, find_others, refuse
from torchpar.serve.supervisor.answers import Answers
from torchpar.serve.supervisor.changed_settings import ChangedSettings
from torchpar.serve.supervisor.children import Children
from torchpar.serve.supervisor.counts import Counts
from torchpar.serve.supervisor.forks import Forked, adopt_orphans
from torchpar.serve.supervisor.loading import Loading
from torchpar.serve.supervisor.member import LOADING_SECONDS, Member, describe
from torchpar.serve.supervisor.places import Place
from torchpar.serve.supervisor.status import make_status
from torchpar.serve.supervisor.stopping import STOP_SECONDS, Stopping
from torchpar.serve.supervisor.totals import merge
from torchpar.serve.supervisor.unbatched import Unbatched
from torchpar.serve.supervisor.watchdog import watch

# Before a process that ended is started again: doubled for each time that it did not even get ready.
RESTART_SECONDS, LONGEST_RESTART_SECONDS = 0.1, 10.0
# One that says for so much longer than another that it makes progress gets no connection.
SILENT_SECONDS = 3.0
# So many failures in a row, with no other process that serves, are left to systemd and its start limit.
FAILURES = 6


class Processes:
    """Starts, watches and stops all processes. `run()` returns the service's exit status when they have ended."""

    def __init__(
        self, settings: JobSettings, listeners: Sequence[tuple[str, socket.socket]], notifier: Notifier
    ) -> None:
        """listeners: sockets that listen, each with the name of its protocol, as Front.take has it."""
        assert settings.serve
        self._serve = settings.serve
        self._notifier = notifier
        self._places = {rank.local_rank: Place(rank, settings.serve) for rank in settings.ranks}
        self._processes = [place.first() for place in self._places.values()]
        self._acceptor = Acceptor(listeners, self._takers)
        self._children = Children(self._processes, self._places, self._take, self._over)
        self._stopping = Stopping(settings.serve, self._processes, notifier, self._acceptor.stop)
        self._counts = Counts(
            self._processes, IdleMark(settings, os.environ), Answers(os.environ), lambda: self._stopping.begun
        )
        self._unbatched = Unbatched(self._processes, self._tell)
        self._loading = Loading(self._places, settings.serve.start_timeout, self._align_late)
        self._changed_settings = ChangedSettings()
        self._loop: asyncio.AbstractEventLoop
        self._started = False  # READY=1 was said
        self._reloads: asyncio.Lock
        self._served: Serves | None = None  # of the last that answered

    async def run(self) -> int:
        """Serves until SIGTERM, or until there is no use in trying."""
        self._loop = asyncio.get_running_loop()
        ended = self._stopping.make_ended()
        self._reloads = asyncio.Lock()
        adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, lambda: self._stopping.stop(started=self._started))
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self._loop.create_task(self.reload()))
        self._loop.add_signal_handler(signal.SIGCHLD, self._children.reap)
        path = control.control_path(os.environ)
        server = await control.listen(path, self.reload) if path else None
        for process in self._processes:
            self._start(process)
        self._tell()
        self._counts.tell_always()
        self._counts.report_always()
        if self._notifier.watchdog_seconds:
            watch(self._processes, self._notifier, self._notifier.watchdog_seconds)
        status = await ended
        if server:
            server.close()
        return status

    # ---- starting ----

    def _start(self, process: Member) -> None:
        if self._stopping.begun or process not in self._processes or self._places[process.rank].postpone(process):
            return
        process.narrow = False
        process.ready = process.told_to_end = process.reload_due = process.going = process.refused = False
        process.out, process.quiet, process.begun = "", 0.0, time.monotonic()
        model = find_model(self._processes, process)
        process.serves, process.like = None, model.serves if model else None
        process.unbatched = set()
        known = {
            "like": process.like,
            "unloaded": sorted(self._loading.unloaded),
            "unbatched": sorted(self._unbatched.keys),
        }
        try:
            self._children.start(process, known, waits=self._started)
        except OSError as error:
            process.give_up()
            say(f"process {process.number} cannot be started, which is tried again: {error.strerror}", Priority.WARNING)
            self._loop.call_later(LONGEST_RESTART_SECONDS, self._start, process)
            return
        self._loop.call_later(LOADING_SECONDS, self._start_later, process)

    def _start_later(self, process: Member) -> None:
        """Starts who waited for a process of the same place to have loaded, unless another loads still."""
        for each in self._places[process.rank].take_later():
            self._start(each)

    def _loaded(self, process: Member) -> None:
        """Lets a process answer that has loaded the same as the others serve."""
        if process.retiring:
            return
        model = find_model(self._processes, process)
        if model is None or alike(model.serves, process.serves):
            if not alike(self._served, process.serves):
                say(
                    "no process is left that serves the former files: those that are there now are served",
                    Priority.WARNING,
                )
            self._served = process.serves
            process.going = True
            self._divide(process)
            if process.channel:
                place = self._places[process.rank]
                process.insist(lambda: {"go": True, **place.parts(process)})
        elif process.child:
            refuse(process, model, "files of its models")
            process.child.kill()

    def _divide(self, asking: Member) -> None:
        """Starts the further processes of a place that its first one asks for, and lets those go that are too many."""
        place, was_narrow = self._places[asking.rank], asking.narrow
        for process in place.divide(asking, {each.number for each in self._processes}):
            if process.retiring:
                self._end(process)
            else:
                self._processes.append(process)
                self._counts.share()
                self._start(process)
        if asking.narrow and not was_narrow:
            asking.insist(lambda: {"alone": True})
            say(
                f"process {asking.number} is alone on its CPUs from now on, for it has a model that writes to itself,"
                " and keeps the few compute threads that it had: restart the service to give it all",
                Priority.WARNING,
            )
            self._tell()

    def _end(self, process: Member) -> None:
        """Has a process answer what it has accepted, and end."""
        grace = float(self._serve.drain_timeout)
        process.going = False
        if not process.child:
            if process.retiring:
                self._remove(process)
        elif not process.ready:
            process.child.kill()  # it has accepted nothing
        else:
            process.stop(grace)
            self._loop.call_later(grace + STOP_SECONDS, process.child.kill)

    def _takers(self) -> list[Member]:
        """Returns the processes that may be passed connections: none before all are ready, or they had too many."""
        if not self._started or self._stopping.begun:
            return []
        ready = [process for process in self._processes if process.ready and process.going]
        heard = max((process.heard for process in ready), default=0.0)
        return [process for process in ready if heard - process.heard < SILENT_SECONDS]

    def _align(self, model: Member) -> None:
        """Starts those again that serve other files than this one: they answer what they have accepted, and return."""
        if self._loading.active:
            return  # some have loaded and others not yet; the last call aligns them
        for process in find_others(self._processes, model):
            say(
                f"process {process.number} serves other files than process {model.number}, and is started again",
                Priority.WARNING,
            )
            self._end(process)

    def _align_late(self, process: Member) -> None:
        """Has all serve the same where one does other files whose load nobody waits for any more.

        It follows the others, unless their loads have not ended either.
        """
        self._settle(find_model([*(each for each in self._processes if each is not process), process]))
        self._start_those_out()

    def _settle(self, model: Member | None) -> None:
        """Does what is due when processes have loaded: those that serve other files than `model` are started again."""
        if self._loading.active:
            return
        self._unbatched.loaded()
        if model and model.going:
            self._align(model)
        for place in self._places.values():
            place.forget_weights()
        for process in [process for process in self._processes if process.ready and process.going]:
            self._divide(process)

    def _take(self, process: Member, message: dict[str, Any]) -> None:  # noqa: C901 - a branch for each message
        if "pid" in message and isinstance(process.child, Forked):
            process.child.pid = message["pid"]
            self._places[process.rank].settle()
        if "count" in message:
            self._places[process.rank].measured(process, message["count"], alone=message["alone"])
        if "alive" in message or "ready" in message:
            # Only these: the rest comes from its event loop, which goes on while its computing is stuck.
            process.heard = time.monotonic()
        if "serves" in message:
            process.serves = message["serves"]
            if process.going:
                self._served = process.serves
        if "weights" in message:
            process.weights = set(message["weights"])
            process.size = message.get("size", 0)
        if "shelf" in message:
            self._places[process.rank].exchange(process, message["shelf"], message.get("file"))
        if "unbatched" in message:
            self._unbatched.take(process, message["unbatched"], loading=self._loading.active)
        if "loaded" in message:
            self._loaded(process)
        if "differs" in message:
            refuse(process, find_model(self._processes, process), message["differs"])
        if "ready" in message:
            process.ready = True
            process.untried = message.get("untried", [])
            if self._stopping.leaving:
                process.leave()
            self._see_started()
            self._start_later(process)
            self._tell()
            self._changed_settings.tell(process)
            self._counts.tell([process])
            if process.reload_due and not any(each.ready for each in self._processes if each is not process):
                self._loop.create_task(self._catch_up(process))
            elif model := find_model(self._processes, process):
                self._align(model)  # itself too
        if "did" in message and message["did"] in process.calls:
            process.calls.pop(message["did"]).set_result(message["wrong"])
        elif "serves" in message and process.hung:
            self._align_late(process)
        if "ask" in message:
            self._loop.create_task(self._pass_on(process, message))
        if "counters" in message:
            process.counters = merge(process.counters, message["counters"], message["names"])
        if "usage" in message:
            process.usage, process.quiet = message["usage"], message["quiet"]
        if "setting" in message:
            self._changed_settings.change(self._processes, message["setting"])

    def _see_started(self) -> None:
        if not self._started and all(each.ready or each.out for each in self._processes):
            self._started = True
            self._notifier.send(READY="1")
        elif not self._started and self._serve.start_timeout:
            # Where processes load one after another, systemd waits for the next one as long as for the first.
            self._notifier.send(EXTEND_TIMEOUT_USEC=str(self._serve.start_timeout * 10**6))
        self._acceptor.resume()

    # ---- ends ----

    def _over(self, process: Member, status: int) -> None:
        was_ready = process.ready
        process.child = process.serves = None
        process.unbatched = set()
        process.ready = process.going = False
        if process.channel:
            self._loop.remove_reader(process.channel)
            process.give_up()
        for call in process.calls.values():
            call.set_result(f"process {process.number} {describe(status)}")
        process.calls.clear()
        self._counts.keep(process)
        self._start_later(process)
        if self._stopping.begun:
            self._stopping.see_over(was_ready=was_ready)
            return
        if process.retiring:
            self._remove(process)
            return
        if process.out and find_model(self._processes, process):
            say(
                f"process {process.number} stays out until the models are loaded again (systemctl reload):"
                f" the others were loaded before this changed: {process.out}",
                Priority.WARNING,
            )
            self._see_started()
            self._tell()
            return
        process.out = ""
        if process.refused:
            self._start(process)
            return
        if not self._started and process.index:
            say(f"process {process.number} {describe(status)}, and is done without: the others serve", Priority.WARNING)
            self._remove(process)
            return
        if not self._started:
            # What keeps one of them from starting at all keeps systemctl start from succeeding.
            self._stopping.fail(ExitStatus.CONFIG if status == ExitStatus.CONFIG else ExitStatus.FAILED)
            return
        process.failures = 0 if was_ready else process.failures + 1
        if process.failures >= FAILURES and not any(each.ready for each in self._processes):
            say(f"process {process.number} {describe(status)}, {process.failures} times in a row", Priority.WARNING)
            self._stopping.fail(ExitStatus.FAILED)
            return
        delay = min(LONGEST_RESTART_SECONDS, RESTART_SECONDS * 2**process.failures)
        say(f"process {process.number} {describe(status)}; another takes its place in {delay:g} s", Priority.WARNING)
        self._loop.call_later(delay, self._start, process)
        if not find_model(self._processes):
            self._start_those_out()
        self._tell()

    def _remove(self, process: Member) -> None:
        """Goes on without a process, for good."""
        self._processes.remove(process)
        self._places[process.rank].leave_out(process)
        self._see_started()
        self._tell()

    # ---- reloading ----

    async def reload(self) -> str:
        """Has every process load its models again; returns "" or what went wrong, in which case the old ones stay."""
        async with self._reloads:
            if self._stopping.leaving or self._stopping.begun:
                return "the service is stopping"
            # systemd 253 and later want to know when this was said.
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._notifier.send(RELOADING="1", MONOTONIC_USEC=str(now), STATUS="loading the models again")
            wrong = await self._call(self._processes, "reload", "")
            self._start_those_out()
            self._notifier.send(READY="1")
            self._tell()
            if wrong:
                say(f"not reloaded: {wrong}", Priority.WARNING)
            return wrong

    def _start_those_out(self) -> None:
        for process in self._processes:
            if process.out and not process.child:
                self._start(process)

    async def _call(self, processes: Sequence[Member], verb: str, model: str, like: Member | None = None) -> str:
        """Has processes do something, and waits for it; returns what went wrong, each reason once.

        Those that then serve other files than `like`, else than the first that could do it, are started again.
        """
        wrong = await self._loading.call(processes, verb, model)
        could = [process for process in wrong if process.going and not wrong[process]]
        self._settle(like or (could[0] if could else find_model(self._processes)))
        for process in [process for process in wrong if process.hung and not process.going]:
            say(wrong.pop(process), Priority.WARNING)  # it is started again, and loads then what the others have loaded
        return "\n".join(dict.fromkeys(what for what in wrong.values() if what))

    async def _catch_up(self, process: Member) -> None:
        """Loads again what was to be loaded again while it was being started, and no other answered."""
        process.reload_due = False
        wrong = await self._call([process], "reload", "", like=process)
        if wrong:
            say(f"process {process.number}, reload: {wrong}", Priority.WARNING)

    async def _pass_on(self, asking: Member, message: dict[str, Any]) -> None:
        """Has the other processes load or unload a model: a client had one do that."""
        others = [process for process in self._processes if process is not asking]
        channel = asking.channel
        wrong = await self._call(others, message["verb"], message["model"], like=asking)
        if asking.channel is channel:  # else it has ended, and another is in its place, which counts from 0 too
            asking.insist(lambda: {"asked": message["ask"], "wrong": wrong})

    def _tell(self) -> None:
        """Tells systemd the line of `systemctl status`, which stays what it is during a stop."""
        if self._stopping.leaving:
            return
        self._notifier.send(STATUS=make_status(self._processes, self._unbatched.keys, started=self._started))
