"""What stands in front of the engine: the protocols, put together."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Sequence
from ssl import SSLContext
from typing import Any

from torchpar.serve.engine import Engine
from torchpar.serve.errors import StartError
from torchpar.serve.http.application import Application
from torchpar.serve.http.limits import Limits
from torchpar.serve.http.log import RequestLog, say
from torchpar.serve.http.server import Server
from torchpar.serve.protocol.service import Service
from torchpar.serve.protocol.settings import LogSettings, TraceSettings

# A request that takes longer is told in the journal.
SLOW_SECONDS = 1.0


class Front:
    """Serves an engine: HTTP on sockets that are bound and listen already, gRPC on addresses.

    shared: other processes serve gRPC on the same addresses.
    """

    def __init__(
        self, engine: Engine, tls: SSLContext | None = None, grpc: Sequence[str] = (), *, shared: bool = False
    ) -> None:
        log = RequestLog(SLOW_SECONDS)
        self.service = Service(engine, LogSettings(log.set_every), TraceSettings(say))
        application = Application(self.service)
        self._tls = tls
        self.server = Server(application, Limits(), log)
        self._addresses = grpc
        self._shared = shared
        self._grpc: list[Any] = []
        application.serve(self.server)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept. Raises StartError where gRPC cannot be served on its addresses."""
        if self._addresses:
            # Only here: grpcio is not everywhere, and takes a while to import.
            try:
                from torchpar.serve.grpc.server import GrpcServer
            except ImportError as error:
                why = "Listen= names an address for gRPC, and the service's interpreter has no grpcio"
                raise StartError(f"{why} (Debian: apt install python3-grpcio): {error}") from None
            for address in self._addresses:
                server = GrpcServer(self.service, self.server)
                try:
                    await server.start(address, shared=self._shared)
                except OSError as error:
                    raise StartError(str(error)) from None
                self._grpc.append(server)
        # What is there by now stays: to look through it for garbage delays every answer by a tenth of a second.
        gc.collect()
        gc.freeze()
        await self.server.start(sockets, self._tls)

    async def stop(self, grace: float) -> None:
        """Accept no more; returns when every connection has the answers that are due, or after grace seconds."""
        await asyncio.gather(self.server.stop(grace), *(server.stop(grace) for server in self._grpc))
        self.service.threads.shutdown(wait=False, cancel_futures=True)
        self.service.apart.close()
