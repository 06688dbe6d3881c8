"""Messages between the first process and those that serve, where something does not fit, and descriptors with them."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.test_members import received
from torchpar.serve.process import _Serving
from torchpar.serve.supervisor.accepting import Acceptor
from torchpar.serve.supervisor.channel import Channel, make_pair
from torchpar.serve.supervisor.gauge import make_gauge
from torchpar.serve.supervisor.member import Member


@pytest.fixture
def pair() -> Iterator[tuple[Member, Channel]]:
    """A process as the first one knows it, and its end of the channel."""
    member = Member(0, 0)
    member.channel, theirs = make_pair()
    member.gauge = make_gauge()
    other = Channel(theirs)
    yield member, other
    other.close()
    member.give_up()


def test_no_descriptor_goes_to_what_a_process_starts(pair: tuple[Member, Channel]) -> None:
    """It would keep a client's connection open that the server has closed."""
    member, other = pair
    assert member.channel and member.channel.send_file(0, connection="http")
    file = (other.receive() or {})["file"]
    assert not os.get_inheritable(file)
    os.close(file)


@pytest.mark.parametrize("name", [b"\0torchpar-test-client", None])
def test_a_client_with_any_address_of_its_own_is_passed_on(
    pair: tuple[Member, Channel], name: bytes | None
) -> None:
    """An abstract one is bytes."""
    member, other = pair

    async def run() -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind("")
            listener.listen()
            if name:
                client.bind(name)
            Acceptor([("http", listener)], lambda: [member]).resume()
            client.connect(listener.getsockname())
            for _ in range(100):
                await asyncio.sleep(0.001)
                if message := other.receive():
                    return message
        return {}

    message = asyncio.run(run())
    assert message["peer"] == ""
    os.close(message["file"])


def test_a_stop_comes_to_who_has_not_read_for_long(pair: tuple[Member, Channel]) -> None:
    """With the time that is left; else it would be killed with all that it has accepted."""
    member, other = pair

    async def run() -> list[Any]:
        assert member.channel
        while member.channel.send(usage={"a" * 1000: 1}):
            pass
        member.stop(30)
        stops: list[Any] = []
        while not stops:
            await asyncio.sleep(0.01)
            stops = received(other, "stop")
        return stops

    (seconds,) = asyncio.run(asyncio.wait_for(run(), 300))
    assert 0 < seconds < 30


def test_a_connection_for_which_there_is_no_descriptor_costs_no_other(
    pair: tuple[Member, Channel], capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel drops what a process may not open: the message is there without it."""
    member, other = pair
    serving: Any = _Serving.__new__(_Serving)
    assert member.channel and member.gauge
    serving._gauge = member.gauge
    with socket.socket() as client:
        assert member.pass_connection(client, "http", "", 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        message = other.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    serving._take_connection(message)
    assert member.gauge.taken == 1
    assert "a connection is lost, for this process may open no more files: see LimitNOFILE=" in capfd.readouterr().err
