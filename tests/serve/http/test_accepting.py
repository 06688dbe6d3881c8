"""How connections are accepted where several processes share a socket."""

from __future__ import annotations

import asyncio
import socket

from tests.serve.http.conversation import Application
from torchpar.serve.http.limits import Limits
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.server import Server


def test_servers_that_share_a_socket_take_turns() -> None:
    """A burst of connections is not all for whoever woke up first."""

    async def run() -> list[int]:
        listener = socket.create_server(("127.0.0.1", 0))
        servers = [Server(Application(), Limits(), RequestLog(1.0)) for _ in range(2)]
        for server in servers:
            await server.start([listener.dup()])  # an event loop has one reader of a file descriptor
        clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        await asyncio.sleep(0.1)
        counts = [server.connections() for server in servers]
        for client in clients:
            client.close()
        for server in servers:
            await server.stop(0.2)
        listener.close()
        return counts

    assert asyncio.run(run()) == [10, 10]


def test_who_comes_during_a_drain_waits_for_whoever_accepts_next() -> None:
    """The socket is systemd's: it outlives this server, and so do the connections in its queue."""

    async def run() -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        first, second = (Server(Application(), Limits(), RequestLog(1.0)) for _ in range(2))
        await first.start([listener])
        await first.stop(0.2)
        client = socket.create_connection(listener.getsockname())
        await asyncio.sleep(0.05)
        assert first.connections() == 0
        await second.start([listener])
        await asyncio.sleep(0.05)
        accepted = second.connections()
        client.close()
        await second.stop(0.2)
        listener.close()
        return accepted

    assert asyncio.run(run()) == 1
