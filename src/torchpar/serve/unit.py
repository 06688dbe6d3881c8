"""The server as torchpar-infer@.service runs it: the first process, one that serves, and `reload`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence

from torchpar.contract.errors import ExitStatus, JobSettingsError
from torchpar.contract.job import JobSettings, RankSettings, parse_job_environment
from torchpar.contract.journal import Priority, say
from torchpar.contract.notify import Notifier
from torchpar.serve.errors import StartError
from torchpar.serve.following import rank_now, wait_for_part
from torchpar.serve.sockets import adopt_sockets, listen_on, refuse_unnamed, split_by_protocol
from torchpar.serve.supervisor.control import ask_to_reload
from torchpar.serve.supervisor.gauge import Gauge
from torchpar.serve.supervisor.processes import Processes

USAGE = "usage: serve.py [reload]"


def main(arguments: Sequence[str]) -> int:
    """Runs what the arguments say; returns the exit status."""
    try:
        if not arguments:
            return _supervise(_settings())
        if list(arguments) == ["reload"]:
            return ask_to_reload(os.environ)
        if arguments[0] == "place" and len(arguments) == 3:
            return _fork(_settings(), *map(int, arguments[1:]))
        if arguments[0] == "process" and len(arguments) == 4:
            return _serve(_settings(), *map(int, arguments[1:]))
    except (JobSettingsError, StartError) as error:
        say(str(error), Priority.ERROR)
        return ExitStatus.CONFIG
    print(USAGE, file=sys.stderr)
    return ExitStatus.USAGE


def _settings() -> JobSettings:
    settings = parse_job_environment(os.environ)
    if settings is None or settings.serve is None:
        raise StartError("this is started by torchpar-infer@NAME.service, for an [Infer NAME] of torchpar.conf")
    return settings


def _supervise(settings: JobSettings) -> int:
    assert settings.serve
    wait_for_part(settings, os.environ)
    sockets = adopt_sockets(os.environ, settings.service)
    named = settings.serve
    refuse_unnamed(sockets, (*named.listen, *named.grpc))
    http, grpc, missing = split_by_protocol(sockets, named.grpc)
    try:
        grpc += [listen_on(address, "gRPC") for address in missing]
    except OSError as error:
        raise StartError(str(error)) from None
    listeners = [("http", each) for each in http] + [("grpc", each) for each in grpc]
    return asyncio.run(Processes(settings, listeners, Notifier()).run())


def _serve(settings: JobSettings, local_rank: int, channel: int, gauge: int) -> int:
    from torchpar.serve.process import serve

    return serve(settings, _bind(settings, local_rank), socket.socket(fileno=channel), Gauge(gauge))


def _fork(settings: JobSettings, local_rank: int, door: int) -> int:
    from torchpar.serve.forking import fork_processes

    return fork_processes(settings, _bind(settings, local_rank), socket.socket(fileno=door))


def _bind(settings: JobSettings, local_rank: int) -> RankSettings:
    # Before torch is imported: threads that it starts inherit the CPUs.
    from torchpar.serve.process import bind

    rank = settings.rank(local_rank)
    if rank is None:
        raise StartError(f"the plan of {settings.service} has no process {local_rank}")
    bind(settings, rank, os.environ, rank_now(settings, rank, os.environ).cpus)
    return rank
