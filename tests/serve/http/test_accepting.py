"""How connections are accepted where several processes share a socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.serve.http.conversation import Application, run_in_order
from torchpar.serve.http.exchange import Exchange
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.server import Server
from torchpar.serve.limits import Limits


def test_servers_that_share_a_socket_take_turns() -> None:
    """A burst of connections is not all for whoever woke up first."""

    async def run() -> list[int]:
        listener = socket.create_server(("127.0.0.1", 0))
        servers = [Server(Application(), Limits(), RequestLog(1.0)) for _ in range(2)]
        for server in servers:
            await server.start([listener.dup()])  # an event loop has one reader of a file descriptor
        clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        await asyncio.sleep(0.1)
        counts = [server.state.connections() for server in servers]
        for client in clients:
            client.close()
        for server in servers:
            await server.stop(0.2)
        listener.close()
        return counts

    assert run_in_order(run()) == [10, 10]


def test_who_comes_during_a_drain_waits_for_whoever_accepts_next() -> None:
    """The socket is systemd's: it outlives this server, and so do the connections in its queue."""

    async def run() -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        first, second = (Server(Application(), Limits(), RequestLog(1.0)) for _ in range(2))
        await first.start([listener])
        await first.stop(0.2)
        client = socket.create_connection(listener.getsockname())
        await asyncio.sleep(0.05)
        assert first.state.connections() == 0
        await second.start([listener])
        await asyncio.sleep(0.05)
        accepted = second.state.connections()
        client.close()
        await second.stop(0.2)
        listener.close()
        return accepted

    assert run_in_order(run()) == 1


def test_who_resets_the_connection_before_it_is_accepted_has_an_address_all_the_same() -> None:
    """getpeername(2) has none of it, and who has no address must not be taken for this host."""

    async def run() -> None:
        peers: list[Any] = []
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        address = client.getsockname()
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server = Server(lambda exchange: peers.append(exchange.connection.peer), Limits(), RequestLog(1.0))
        await server.start([listener])
        await asyncio.sleep(0.1)
        await server.stop(0.2)
        listener.close()
        assert peers == [address]

    run_in_order(run())


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        (("127.0.0.1", 1), True), (("::1", 1, 0, 0), True), (("::ffff:127.0.0.1", 1, 0, 0), True), ("", True),
        (("192.0.2.1", 1), False), (("::ffff:192.0.2.1", 1, 0, 0), False), (None, False),
    ],
)  # fmt: skip
def test_this_host_is_loopback_and_unix_sockets_and_nothing_unknown(peer: Any, local: bool) -> None:
    """Only this host may load and unload models."""
    connection: Any = SimpleNamespace(peer=peer)
    assert Exchange(connection).is_local() is local


def test_a_client_on_a_unix_socket_is_this_host(tmp_path: Path) -> None:
    async def run() -> None:
        local: list[bool] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def application(exchange: Exchange) -> None:
            local.append(exchange.is_local())
            exchange.respond(200, b"text/plain", b"")

        server = Server(application, Limits(), RequestLog(1.0))
        await server.start([listener])
        reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        writer.close()
        await server.stop(0.2)
        listener.close()
        assert local == [True]

    run_in_order(run())
