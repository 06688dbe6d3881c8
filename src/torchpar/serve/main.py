"""The server by itself, without systemd and a plan, for trying and measuring: `python3 -m torchpar.serve`."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import signal
import socket
from collections.abc import Sequence

from torchpar.contract.errors import ExitStatus
from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.engine import Engine
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.errors import ModelError, StartError
from torchpar.serve.front import Front


def main(arguments: Sequence[str]) -> int:
    """Serves until SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m torchpar.serve")
    parser.add_argument("--name", default="model", help="the name of a single model")
    parser.add_argument("--model", help="a model file, or a directory of models")
    parser.add_argument("--handler", help="or a Python handler")
    parser.add_argument("--listen", default="127.0.0.1:8000", metavar="ADDRESS:PORT")
    parser.add_argument("--grpc", default="", metavar="ADDRESS:PORT")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--drain", type=float, default=30.0, metavar="SECONDS")
    options = parser.parse_args(arguments)
    # Until it is ready a signal ends it at once, whatever a model does meanwhile; SIGTERM with where that is.
    faulthandler.register(signal.SIGTERM, chain=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    engine_options = EngineOptions(options.name, options.model, options.handler, workers=options.workers)
    address, _, port = options.listen.rpartition(":")
    listener = socket.create_server((address.strip("[]"), int(port)), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as asyncio does with those that systemd passes
    try:
        asyncio.run(serve(engine_options, [listener], options.grpc, options.drain))
    except (ModelError, StartError) as error:
        say(str(error), Priority.ERROR)
        return ExitStatus.CONFIG
    return 0


async def serve(options: EngineOptions, sockets: Sequence[socket.socket], grpc: str, drain: float) -> None:
    """Loads, accepts, and on SIGTERM finishes what was accepted."""
    engine = Engine(options)
    await engine.start()
    front = Front(engine, grpc=[grpc] if grpc else [])
    await front.start(sockets)
    ended = asyncio.Event()
    faulthandler.unregister(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    say(f"listening on {', '.join(str(sock.getsockname()) for sock in sockets)}")
    await ended.wait()
    await front.stop(drain)
    await engine.stop(drain)


