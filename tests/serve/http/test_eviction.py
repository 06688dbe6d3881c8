"""Where all places are taken, who was waited for longest makes room, and nobody who waits for an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.serve.http.conversation import Client, World, converse, until
from torchpar.serve.http.eviction import LEAST_SECONDS, Eviction
from torchpar.serve.http.peer import Peer
from torchpar.serve.limits import Limits

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LATER = b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = Limits(connections=3, linger_seconds=0.2)


async def rest(world: World, *begun: bytes) -> list[Client]:
    """Connections, each of which has sent so much and then nothing more for a while."""
    clients = []
    for data in begun:
        clients.append(await world.connect())
        clients[-1].send(data)
        await asyncio.sleep(0.02)
    await asyncio.sleep(LEAST_SECONDS)
    return clients


def test_the_one_that_was_waited_for_longest_goes() -> None:
    async def story(world: World) -> None:
        clients = await rest(world, LATER, b"", b"GET / HTTP/1.1\r\n")
        late = await world.connect()
        late.send(GET)
        assert (await late.answer())[0] == 200
        assert await clients[1].rest() == b""
        await asyncio.sleep(LEAST_SECONDS)
        later = await world.connect()
        later.send(GET)
        assert (await later.answer())[0] == 200
        try:
            assert await clients[2].rest() == b""
        except ConnectionResetError:
            pass
        world.application.held[0].respond(200, b"text/plain", b"late")
        assert (await clients[0].answer())[2] == b"late"
        late.send(GET)
        assert (await late.answer())[0] == 200

    converse(story, LIMITS)


def test_one_that_sends_a_body_or_takes_an_answer_is_not_waited_for_until_it_stops() -> None:
    async def story(world: World) -> None:
        taking = await world.connect(receive_buffer=100_000)
        taking.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        begun = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n" + b"x" * 10_000
        sending, idle = await rest(world, begun, GET)
        sending.send(b"x" * 10_000)
        await taking.reader.readexactly(2_000_000)
        owed = world.server.state.owed
        await until(lambda: world.server.state.owed < owed)
        await asyncio.sleep(LEAST_SECONDS)
        late = await world.connect()
        late.send(GET)
        assert (await late.answer())[0] == 200
        assert (await idle.answer())[2] == b"GET " and await idle.rest() == b""
        sending.send(b"x" * 10_000)
        assert (await sending.answer())[0] == 200
        assert len(await taking.reader.readexactly(8_000_000)) == 8_000_000

    converse(story, LIMITS)


def test_one_that_waits_for_an_answer_never_goes() -> None:
    async def story(world: World) -> None:
        clients = await rest(world, LATER, LATER, LATER)
        late = await world.connect()
        late.send(GET)
        assert (await late.answer())[0] == 503
        for exchange in world.application.held:
            exchange.respond(200, b"text/plain", b"late")
        for client in clients:
            assert (await client.answer())[2] == b"late"
        await until(lambda: world.server.state.connections() == 3)

    converse(story, LIMITS)


def test_who_makes_room_is_gone_with_all_that_it_has_not_taken() -> None:
    async def story(world: World) -> None:
        clients = []
        for _ in range(LIMITS.connections + 2):
            clients.append(await world.connect(receive_buffer=4096))
            clients[-1].send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: len(world.application.paths) == len(clients))
            await asyncio.sleep(2 * LEAST_SECONDS)
        assert world.server.state.connections() == LIMITS.connections
        await until(lambda: world.server.state.owed <= LIMITS.connections * 10_000_000)
        for client in clients:
            client.writer.transport.abort()

    converse(story, LIMITS)


class Waiting(Peer):
    def __init__(self, address: str, since: float | None) -> None:
        self.peer = address, 1
        self.since = since

    def waits_since(self) -> float | None:
        return self.since

    def expire(self, now: float) -> None:
        pass

    make_way: Any = expire
    drain: Any = expire
    abort: Any = expire


def test_the_address_with_the_most_connections_gives_way_first() -> None:
    busy, oldest, first, second = Waiting("b", None), Waiting("a", 1), Waiting("b", 2), Waiting("b", 3)
    peers = {second, oldest, busy, first}
    eviction = Eviction()
    gone = []
    for now in range(10, 15):
        gone.append(eviction.choose(peers, Waiting("c", None), now))
        peers.discard(gone[-1])
    assert gone == [first, second, oldest, None, None]


def test_one_that_was_heard_of_meanwhile_stays() -> None:
    first, second, third = (Waiting("a", number) for number in range(3))
    peers = {first, second, third}
    eviction = Eviction()
    assert eviction.choose(peers, first, 10) is first
    peers.remove(first)
    second.since = 9.99
    assert eviction.choose(peers, first, 10.01) is third


@pytest.mark.parametrize("pause", [0.0001, 0.05, 1.0])
def test_a_flood_takes_no_more_places_than_its_share(pause: float) -> None:
    """However fast it comes: with one address each, the others lose one or two."""
    peers = {Waiting(f"10.0.0.{number}", number * 0.01) for number in range(100)}
    eviction, now = Eviction(), 100.0
    for _ in range(1000):
        now += pause
        newcomer = Waiting("6.6.6.6", now)
        gone = eviction.choose(peers, newcomer, now)
        if gone is not None:
            peers.remove(gone)
            peers.add(newcomer)
    assert sum(peer.peer[0] == "6.6.6.6" for peer in peers) <= 2


def test_a_client_with_more_connections_takes_no_place_of_one_with_fewer() -> None:
    busy = [Waiting("b", None) for _ in range(2)]
    idle = Waiting("a", 1)
    eviction, newcomer = Eviction(), Waiting("b", 10)
    assert eviction.choose({idle, *busy}, newcomer, 10) is None
    assert eviction.choose({idle, busy[0]}, newcomer, 11) is idle


def test_clients_behind_one_load_balancer_have_each_others_places() -> None:
    """Also the second within a moment."""
    peers = {Waiting("a", number) for number in range(5)}
    eviction = Eviction()
    gone = [eviction.choose(peers, Waiting("a", 10), 10) for _ in range(3)]
    assert [peer.since for peer in gone if isinstance(peer, Waiting)] == [0, 1, 2]
