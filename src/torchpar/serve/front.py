"""Puts the protocols together, in front of the engine."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Sequence
from ssl import SSLContext
from typing import Any

from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.engine import Engine
from torchpar.serve.errors import StartError
from torchpar.serve.grpc.server import GrpcServer
from torchpar.serve.http.application import Application
from torchpar.serve.http.connection import Connection
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.server import Server
from torchpar.serve.limits import own_limits
from torchpar.serve.protocol.log_settings import LogSettings, TraceSettings
from torchpar.serve.protocol.service import Service
from torchpar.serve.sockets import listen_on, split_by_protocol

# A request that takes longer is told in the journal.
SLOW_SECONDS = 1.0


# The protocols by which connections are passed from the process that accepts them.
HTTP, GRPC = "http", "grpc"


class Front:
    """Serves an engine on sockets that are bound and listen already: gRPC on those with its addresses, HTTP on others.

    An address of gRPC that no socket has is listened on here. Or serves, of either, the connections that another
    process has accepted.
    """

    def __init__(self, engine: Engine, tls: SSLContext | None = None, grpc: Sequence[str] = ()) -> None:
        log = RequestLog(SLOW_SECONDS)
        self.service = Service(engine, LogSettings(log.set_every), TraceSettings(say))
        application = Application(self.service)
        self._tls = tls
        self.server = Server(application, own_limits(), log)
        self._addresses = grpc
        self._grpc = [GrpcServer(self.service, self.server)]
        application.serve(self.server.state)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accepts. Raises StartError where gRPC cannot be served on its addresses."""
        # What is there by now stays: to look through it for garbage delays every answer by a tenth of a second.
        gc.collect()
        gc.freeze()
        # asyncio's own handler tells it to a logger that nobody has set up.
        asyncio.get_running_loop().set_exception_handler(_say_failure)
        http, grpc, missing = split_by_protocol(sockets, self._addresses)
        await self.server.start(http, self._tls)
        try:
            grpc += [listen_on(address, "gRPC") for address in missing]
        except OSError as error:
            raise StartError(str(error)) from None
        for listener in grpc:
            self._grpc.append(GrpcServer(self.service, self.server))
            self._grpc[-1].serve(listener)

    def take(self, sock: socket.socket, protocol: str, peer: Any) -> None:
        """Serves a connection that another process has accepted; peer is its other end, as accept(2) said."""
        if protocol == GRPC:
            self.server.take(sock, self._grpc[0].connect(peer))
        else:
            self.server.take(sock, Connection(self.server.state, peer), self._tls)

    async def stop(self, grace: float) -> None:
        """Accepts no more; returns when every connection has the answers that are due, or after grace seconds."""
        for grpc in self._grpc:
            grpc.stop()
        await self.server.stop(grace)
        self.service.threads.shutdown(wait=False, cancel_futures=True)
        self.service.apart.close()


def _say_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    say(str(context.get("message", "")), Priority.ERROR, error=context.get("exception"))
