"""What stands in front of the engine: the protocols, put together."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ssl import SSLContext

from torchpar.serve.engine import Engine
from torchpar.serve.http.application import Application
from torchpar.serve.http.limits import Limits
from torchpar.serve.http.log import RequestLog, say
from torchpar.serve.http.server import Server
from torchpar.serve.protocol.service import Service
from torchpar.serve.protocol.settings import LogSettings, TraceSettings

# A request that takes longer is told in the journal.
SLOW_SECONDS = 1.0


class Front:
    """Serves an engine on sockets that are bound and listen already."""

    def __init__(self, engine: Engine, tls: SSLContext | None = None) -> None:
        log = RequestLog(SLOW_SECONDS)
        application = Application(Service(engine, LogSettings(log.set_every), TraceSettings(say)))
        self._tls = tls
        self._server = Server(application, Limits(), log)
        application.serve(self._server)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept."""
        await self._server.start(sockets, self._tls)

    async def stop(self, grace: float) -> None:
        """Accept no more; returns when every connection has the answers that are due, or after grace seconds."""
        await self._server.stop(grace)
