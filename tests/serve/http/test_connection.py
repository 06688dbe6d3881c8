"""A client's connection: what is answered, in which order, and what a bad client gets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.serve.http.conversation import Client, World, converse, until
from torchpar.serve.http import server
from torchpar.serve.limits import Limits

QUICK = Limits(
    connections=3, header=2048, body=100_000, held=250_000, pipeline=4, header_seconds=0.3, body_seconds=0.3,
    body_rate=200_000, quick_rate=0, idle_seconds=0.3, write_seconds=0.3, linger_seconds=0.3)  # fmt: skip

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def post(body: bytes, *fields: bytes, path: bytes = b"/") -> bytes:
    more = b"".join(field + b"\r\n" for field in fields)
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (path, len(body), more, body)


def test_a_connection_is_used_for_one_request_after_the_other() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        for _ in range(3):
            client.send(GET)
            status, fields, body = await client.answer()
            assert (status, body) == (200, b"GET ")
            assert "connection" not in fields
            assert fields["date"].endswith("GMT")
        client.send(post(b"abc"))
        assert (await client.answer())[2] == b"POST abc"

    converse(story)


def test_a_request_may_come_byte_by_byte() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        for byte in post(b"hello"):
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer())[2] == b"POST hello"

    converse(story)


def test_pipelined_requests_are_answered_in_their_order() -> None:
    """The second is ready first, and waits for the first."""

    async def story(world: World) -> None:
        client = await world.connect()
        client.send(post(b"", path=b"/later/1") + post(b"2") + post(b"", path=b"/later/3") + post(b"4"))
        await until(lambda: len(world.application.held) >= 2)
        first, third = world.application.held
        third.respond(200, b"text/plain", b"three")
        first.respond(200, b"text/plain", b"one")
        assert [(await client.answer())[2] for _ in range(4)] == [b"one", b"POST 2", b"three", b"POST 4"]

    converse(story)


def test_a_client_that_pipelines_without_end_is_read_no_further() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        request = post(b"x" * 90_000, path=b"/later")
        client.send(request * 40)
        await asyncio.sleep(0.3)
        count = len(world.application.held)
        assert 4 <= count < 12
        for exchange in world.application.held:
            exchange.respond(200, b"text/plain", b"")
        await asyncio.sleep(0.2)
        assert len(world.application.held) > count
        client.writer.transport.abort()

    converse(story, replace(QUICK, held=10_000_000))


@pytest.mark.parametrize("request_", [GET.replace(b"/", b"/later", 1), post(b"x" * 50, path=b"/later")])
def test_no_more_small_requests_are_handed_on_than_may_wait(request_: bytes) -> None:
    """Thousands of them come from the kernel at once; all are answered in the end."""

    async def story(world: World) -> None:
        client = await world.connect()
        client.send(request_ * 1000)
        held, count = world.application.held, 0
        while count < 1000:
            await until(lambda: held)
            await asyncio.sleep(0)
            assert len(held) <= 4
            for exchange in held[:]:
                held.remove(exchange)
                exchange.respond(200, b"text/plain", b"%d" % count)
                count += 1
        for i in range(1000):
            assert (await client.answer())[2] == b"%d" % i

    converse(story, replace(QUICK, header_seconds=10))


def test_many_small_requests_that_are_answered_at_once_leave_others_a_turn() -> None:
    """The event loop is nobody's own."""

    async def story(world: World) -> None:
        client = await world.connect()
        client.send(GET * 1000)
        most = seen = 0
        while seen < 1000:
            await asyncio.sleep(0)
            most = max(most, len(world.application.paths) - seen)
            seen = len(world.application.paths)
        assert most <= 4
        for _ in range(1000):
            assert (await client.answer())[2] == b"GET "

    converse(story, replace(QUICK, header_seconds=10))


def test_a_body_of_very_small_chunks_leaves_others_a_turn() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3\r\nabc\r\n" * 20_000)
        most = seen = 0
        while seen < 60_000:
            await asyncio.sleep(0)
            most = max(most, world.server.state.held - seen)
            seen = world.server.state.held
        assert most <= 2048
        client.send(b"0\r\n\r\n")
        assert (await client.answer())[0] == 200

    converse(story, replace(QUICK, body_seconds=10))


def test_a_body_with_other_requests_around_it_is_whole() -> None:
    """However the bytes are cut into pieces."""

    async def story(world: World) -> None:
        client = await world.connect()
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (b"a" * 3000, b"\r\n\r\n" * 1000, b"b"))
        chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        large = GET.replace(b"\r\n\r\n", b"\r\nX: %b\r\n\r\n" % (b"y" * 1800))
        bodies = [b"a" * 9000, b"\r\n\r\n" * 2000, b"z"]
        client.send(b"".join([GET, *map(post, bodies), chunked, large, post(b"end")] * 3))
        for _ in range(3):
            got = [(await client.answer())[2] for _ in range(7)]
            want = [b"POST " + body[:100] for body in (*bodies, b"a" * 100)]
            assert got == [b"GET ", *want, b"GET ", b"POST end"]

    converse(story, QUICK)


def test_a_chunked_body_is_put_together() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        client.send(b"2;why=not\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
        assert (await client.answer())[2] == b"POST abcde"
        client.send(GET)
        assert (await client.answer())[2] == b"GET "

    converse(story)


def test_a_body_of_many_tiny_chunks_takes_no_more_memory_than_its_bytes() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST /later HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5000)
        await until(lambda: world.server.state.held == 5000)
        client.send(b"0\r\n\r\n")
        await until(lambda: world.application.held)
        assert world.application.held[0].body == b"a" * 5000
        world.application.held[0].respond(200, b"text/plain", b"")
        await client.answer()

    converse(story)


def test_expect_100_continue_asks_for_the_body_once_it_is_wanted() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        assert (await client.answer())[2] == b"POST abc"

    converse(story)


def test_a_100_continue_waits_until_earlier_requests_are_answered() -> None:
    """Sooner it would be taken for the answer to the first."""

    async def story(world: World) -> None:
        client = await world.connect()
        client.send(post(b"", path=b"/later"))
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        await until(lambda: world.application.held)
        await asyncio.sleep(0.05)
        world.application.held[0].respond(200, b"text/plain", b"first")
        assert (await client.answer())[2] == b"first"
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        assert (await client.answer())[2] == b"POST abc"

    converse(story)


def test_a_body_that_is_too_large_is_refused_before_it_is_sent() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\nExpect: 100-continue\r\n\r\n")
        status, fields, body = await client.answer()
        assert status == 413
        assert fields["connection"] == "close"
        assert json.loads(body) == {"error": "the body has 200000 bytes; the limit is 100000"}
        assert await client.rest() == b""

    converse(story, QUICK)


def test_a_refused_client_that_sends_on_can_read_why() -> None:
    """Closing at once would reset the connection, and the answer would be lost."""

    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
        for _ in range(50):
            client.send(b"x" * 100_000)
            await asyncio.sleep(0)
        assert (await client.answer())[0] == 413

    converse(story, QUICK)


def test_a_chunked_body_that_grows_too_large_is_refused() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"4000\r\n%b\r\n" % (b"x" * 16384) * 8)
        assert (await client.answer())[0] == 413

    converse(story, QUICK)


def test_bodies_of_all_connections_together_have_a_limit() -> None:
    async def story(world: World) -> None:
        begun = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        clients = [await world.connect() for _ in range(2)]
        for client in clients:
            client.send(begun)
            client.send(b"x" * 50_000)
            await asyncio.sleep(0.02)
            client.send(b"x" * 49_000)
        await asyncio.sleep(0.05)
        third = await world.connect()
        third.send(begun)
        status, fields, _ = await third.answer()
        assert (status, fields["retry-after"]) == (503, "1")
        for client in clients:
            client.send(b"x" * 1000)
            assert (await client.answer())[0] == 200

    converse(story, QUICK)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 3000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nExpect: the-unexpected\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 60, 400),
    ],
)
def test_what_is_no_request_gets_a_4xx_and_the_end_of_its_connection(request_: bytes, status: int) -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(request_)
        got, fields, body = await client.answer()
        assert got == status
        assert fields["connection"] == "close"
        assert json.loads(body)["error"]
        assert await client.rest() == b""
        assert world.application.paths == []

    converse(story, QUICK)


def test_a_header_without_an_end_is_cut_off() -> None:
    """The parser keeps what it cannot interpret yet: that must be bounded."""

    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: ")
        for _ in range(20):
            client.send(b"x" * 1000)
            await asyncio.sleep(0.005)
        assert (await client.answer())[0] == 431

    converse(story, QUICK)


@pytest.mark.parametrize(
    ("begun", "what"),
    [(b"GET / HT", "header"), (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", "body")],
)
def test_a_client_that_is_too_slow_gets_408(begun: bytes, what: str) -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(begun)
        status, fields, body = await client.answer()
        assert (status, fields["connection"]) == (408, "close")
        assert json.loads(body) == {"error": f"the request's {what} did not come in time"}

    converse(story, QUICK)


def test_a_client_that_sends_a_byte_now_and_then_gains_nothing() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
        for _ in range(8):
            client.send(b"x")
            await asyncio.sleep(0.05)
        assert (await client.answer())[0] == 408

    converse(story, QUICK)


def test_a_client_that_takes_its_answer_slowly_is_too_late_with_nothing_else() -> None:
    """Meanwhile nothing is read of it: neither the rest of a body nor another request could come."""

    async def story(world: World) -> None:
        for begun in (post(b"x" * 50_000)[:-20_000], b"GET / HTTP/1.1\r\n", b""):
            client = await world.connect(receive_buffer=100_000)
            client.send(post(b"", path=b"/later"))
            await until(lambda: world.application.held)
            client.send(begun)
            await asyncio.sleep(0.05)
            world.application.held.pop().respond(200, b"text/plain", b"y" * 10_000_000)
            await asyncio.sleep(1.2)
            assert world.server.state.connections() == 1
            taken = 0
            while taken < 10_000_000:
                taken += (await client.reader.read(1_000_000)).count(b"y")
            client.send({b"P": b"x" * 20_000, b"G": b"Host: x\r\n\r\n"}.get(begun[:1], GET))
            assert (await client.reader.readexactly(15)) == b"HTTP/1.1 200 OK"
            client.writer.transport.abort()
            await until(lambda: world.server.state.connections() == 0)

    converse(story, replace(QUICK, write_seconds=30.0))


def test_an_idle_connection_is_closed_without_a_word() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(GET)
        await client.answer()
        assert await client.rest() == b""

    converse(story, QUICK)


def test_a_client_that_does_not_read_is_cut_off() -> None:
    async def story(world: World) -> None:
        client = await world.connect(receive_buffer=4096)
        client.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.2)
        assert world.server.state.connections() == 1
        await asyncio.sleep(1.5)
        assert world.server.state.connections() == 0

    converse(story, QUICK)


async def leave_a_little(world: World, last: bytes) -> Client:
    """A client that has not read all of its answers: what is left is too little for the server to slow down."""
    client = await world.connect(receive_buffer=100_000)
    await until(lambda: world.server.state.connections() == 1)
    connection: Any = world.server.state.all_connections()[0]
    while not connection._transport.get_write_buffer_size():
        client.send(post(b"", path=b"/later"))
        await until(lambda: world.application.held)
        world.application.held.pop().respond(200, b"text/plain", b"x" * 30_000)
    client.send(last)
    return client


LAST = [post(b"", b"Connection: close"), b"hello\r\n\r\n"]


@pytest.mark.parametrize("last", LAST)
def test_the_end_of_a_connection_waits_for_a_client_that_does_not_read_no_longer_than_others(last: bytes) -> None:
    async def story(world: World) -> None:
        client = await leave_a_little(world, last)
        await until(lambda: world.server.state.connections() == 0)
        client.writer.transport.abort()

    converse(story, QUICK)


@pytest.mark.parametrize("last", LAST)
def test_a_client_that_reads_slowly_has_all_before_the_end(last: bytes) -> None:
    async def story(world: World) -> None:
        client = await leave_a_little(world, last)
        await asyncio.sleep(0.5)
        assert world.server.state.connections() == 1
        taken = b""
        while piece := await client.reader.read(1_000_000):
            taken += piece
        assert b"Connection: close" in taken[-300:]
        assert taken.count(b"HTTP/1.1 ") == len(world.application.paths) + (last == LAST[1])

    converse(story, replace(QUICK, write_seconds=30.0))


def test_one_connection_too_many_is_told_so() -> None:
    async def story(world: World) -> None:
        clients = [await world.connect() for _ in range(3)]
        for client in clients:
            client.send(GET)
            await client.answer()
        extra = await world.connect()
        status, fields, _ = await extra.answer()
        assert (status, fields["retry-after"], fields["connection"]) == (503, "1", "close")
        clients[0].send(GET)
        assert (await clients[0].answer())[0] == 200

    converse(story, QUICK)


def test_what_a_client_that_has_gone_waits_for_is_cancelled() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(post(b"", path=b"/later/1") + post(b"", path=b"/later/2"))
        await until(lambda: len(world.application.held) >= 2)
        client.writer.close()
        await asyncio.sleep(0.05)
        assert world.application.cancelled == ["/later/1", "/later/2"]
        world.application.held[0].respond(200, b"text/plain", b"too late")

    converse(story)


def test_head_is_get_without_the_body() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        status, fields, _ = await client.answer(head=True)
        assert (status, fields["content-length"]) == (200, "5")
        assert (await client.answer())[2] == b"GET "

    converse(story)


def test_http_1_0_is_closed_unless_it_asks_for_more() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.answer())[1]["connection"] == "keep-alive"
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.answer())[1]["connection"] == "close"
        assert await client.rest() == b""

    converse(story)


def test_after_connection_close_nothing_more_is_answered() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET)
        assert (await client.answer())[1]["connection"] == "close"
        assert await client.rest() == b""
        assert world.application.paths == ["/1"]

    converse(story)


# What the JDK's HTTP client, curl --http2 and others send.
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Version: 13\r\n",
    "two fields": b"upgrade: TLS/1.0\r\nUpgrade: h2c\r\nConnection: keep-alive\r\nconnection: upgrade\r\n",
    "no option": b"Upgrade: h2c\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("piece", [1, 7, 40, 10_000])
def test_an_offer_of_another_protocol_is_declined_by_answering_in_http(offer: bytes, piece: int) -> None:
    """With and without a body, however it is framed and cut; the connection then serves what follows."""
    plain = b"GET /a HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n"
    sized = post(b"four", offer[:-2])
    chunks = b"3\r\nsix\r\n4\r\nteen\r\n0\r\n\r\n"
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\n" + offer + b"Transfer-Encoding: chunked\r\n\r\n" + chunks

    async def story(world: World) -> None:
        client = await world.connect()
        data = (plain + sized + chunked + GET) * 3
        for start in range(0, len(data), piece):
            client.send(data[start : start + piece])
            if piece < 100:
                await asyncio.sleep(0)
        for _ in range(3):
            bodies = [(await client.answer())[2] for _ in range(4)]
            assert bodies == [b"GET ", b"POST four", b"POST sixteen", b"GET "]

    converse(story)


def test_what_else_a_request_with_an_offer_says_holds() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(post(b"x", b"Connection: close", OFFERS["h2c"][:-2]) + GET)
        status, fields, body = await client.answer()
        assert (status, fields["connection"], body) == (200, "close", b"POST x")
        assert await client.rest() == b""
        for request, wanted in (
            (post(b"x" * 101_000, OFFERS["h2c"][:-2]), 413),
            (post(b"x", b"Transfer-Encoding: chunked", OFFERS["h2c"][:-2]), 400),
            (b"GET / HTTP/1.1\r\n" + OFFERS["h2c"] + b"\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2048 + b"\r\n" + OFFERS["h2c"] + b"\r\n", 431),
        ):
            client = await world.connect()
            client.send(request)
            assert (await client.answer())[0] == wanted
            await client.rest()
        client = await world.connect()
        client.send(post(b"", b"Expect: 100-continue", OFFERS["h2c"][:-2]).replace(b"Length: 0", b"Length: 2"))
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        client.send(b"ab")
        assert (await client.answer())[2] == b"POST ab"

    converse(story, replace(QUICK, connections=10))


LARGE = GET.replace(b"/", b"/large", 1)  # 10 MB


def test_answers_that_nobody_takes_are_bounded_together() -> None:
    """Small ones are given all the same, and large ones again once the first is taken, or its client has gone."""

    async def story(world: World) -> None:
        for end in ("read", "go"):
            slow = await world.connect(receive_buffer=4096)
            slow.send(LARGE)
            await until(lambda: world.server.state.owed > 5_000_000)
            other = await world.connect()
            for _ in range(3):
                other.send(LARGE + GET)
                status, fields, body = await other.answer()
                assert (status, fields["retry-after"]) == (503, "1") and b"have not taken" in body
                assert (await other.answer())[2] == b"GET "
            if end == "read":
                assert len(await slow.reader.readexactly(10_000_000)) == 10_000_000
            else:
                slow.writer.transport.abort()
            await until(lambda: world.server.state.owed == 0)
            other.send(LARGE)
            assert len((await other.answer())[2]) == 10_000_000

    converse(story, Limits(owed=14_000_000))


def test_answers_whose_turn_has_not_come_are_bounded_for_each_client() -> None:
    """One is given, of whatever size."""

    async def story(world: World) -> None:
        client, other = await world.connect(), await world.connect()
        client.send(post(b"", path=b"/later") + LARGE * 3 + GET)
        await until(lambda: len(world.application.paths) == 5)
        assert 10_000_000 < world.server.state.owed < 10_010_000
        other.send(LARGE)
        assert (await other.answer())[0] == 200
        world.application.held[0].respond(200, b"text/plain", b"")
        assert [(await client.answer())[0] for _ in range(5)] == [200, 200, 503, 503, 200]
        await until(lambda: world.server.state.owed == 0)
        client.send(post(b"", path=b"/later") + LARGE)
        await until(lambda: world.server.state.owed > 0)
        client.writer.transport.abort()
        await until(lambda: world.server.state.owed == 0)

    converse(story, Limits(owed_each=5_000_000))


@pytest.mark.parametrize("offer", [b"", OFFERS["h2c"]])
def test_nothing_after_connect_is_taken_for_a_request(offer: bytes) -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n" + GET)
        assert (await client.answer())[2] == b"CONNECT "
        assert await client.rest() == b""
        assert world.application.paths == ["x:1"]

    converse(story)


def test_a_bug_is_a_500_and_the_connection_goes_on() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"GET /bug HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        status, _, body = await client.answer()
        assert (status, json.loads(body)) == (500, {"error": "internal error: KeyError"})
        assert (await client.answer())[0] == 200

    converse(story)


def test_a_drain_answers_what_was_accepted_and_closes() -> None:
    async def story(world: World) -> None:
        busy, idle = await world.connect(), await world.connect()
        idle.send(GET)
        await idle.answer()
        busy.send(post(b"", path=b"/later"))
        await until(lambda: world.application.held)
        stop = asyncio.ensure_future(world.server.stop(2))
        await asyncio.sleep(0.05)
        idle.send(GET)
        assert (await idle.answer())[1]["connection"] == "close"
        await asyncio.sleep(0.3)
        world.application.held[0].respond(200, b"text/plain", b"done")
        status, fields, body = await busy.answer()
        assert (status, fields["connection"], body) == (200, "close", b"done")
        await stop

    converse(story)


def test_a_slow_request_is_told_of_and_a_quick_one_is_not() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(GET + post(b"abc", path=b"/later/"))
        await until(lambda: world.application.held)
        await asyncio.sleep(0.06)
        world.application.held[0].respond(200, b"text/plain", b"")
        await client.answer()
        await client.answer()
        assert len(world.lines) == 1
        assert world.lines[0].startswith("slow: POST /later/ 200, 3 bytes in, ")

    converse(story, slow_seconds=0.05)


def test_the_access_log_has_every_request() -> None:
    async def story(world: World) -> None:
        client = await world.connect()
        client.send(GET + GET)
        await client.answer()
        await client.answer()
        assert [line.split(",")[0] for line in world.lines] == ["GET / 200"] * 2

    converse(story, every=True)


@pytest.mark.parametrize("framing", [b"Content-Length: 60000", b"Transfer-Encoding: chunked\r\n\r\nea60"])
def test_a_body_of_which_nothing_comes_any_more_is_given_up(framing: bytes) -> None:
    """However much of it came at once."""

    async def story(world: World) -> None:
        client = await world.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + (b"\r\n" if b"ea60" in framing else b"\r\n\r\n"))
        client.send(b"x" * 59_000)
        assert (await client.answer())[0] == 408
        assert world.server.state.held == 0

    converse(story, QUICK)


def test_a_small_body_is_taken_whatever_others_hold() -> None:
    async def story(world: World) -> None:
        large = await world.connect()
        large.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 99_000)
        await until(lambda: world.server.state.held > 0)
        client = await world.connect()
        for size, status in ((60_000, 200), (70_000, 503)):
            client.send(post(b"x" * size))
            assert (await client.answer())[0] == status
        large.send(b"x" * 1000)
        assert (await large.answer())[0] == 200

    converse(story, Limits(held=120_000))


@pytest.mark.parametrize("length", [b"Content-Length: 120000", b"Transfer-Encoding: chunked"])
def test_a_slow_body_gives_way_where_no_more_may_be_held(length: bytes) -> None:
    """It came quickly at first, and is whole but for some bytes; one that comes quickly stays."""
    limits = Limits(held=250_000, body_seconds=0.5, body_rate=0, quick_rate=50_000)
    begun = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 120000\r\n\r\n"

    async def story(world: World) -> None:
        slow, quick, late = [await world.connect() for _ in range(3)]
        slow.send(begun + b"x" * 119_000)
        await until(lambda: world.server.state.held == 119_000)
        now = asyncio.get_running_loop().time
        arriving = [each for each in world.server.state.all_connections() if each.arriving(now())]
        await until(lambda: (arriving[0].arriving(now()) or (0, 0))[1] < limits.quick_rate)
        quick.send(begun + b"x" * 119_000)
        await until(lambda: world.server.state.held >= 238_000)
        body = b"x" * 120_000
        late.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
        late.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if b"chunked" in length else body)
        assert (await late.answer())[0] == 200
        status, fields, _ = await slow.answer()
        assert (status, fields["retry-after"]) == (503, "1")
        quick.send(b"x" * 1000)
        assert (await quick.answer())[0] == 200

    converse(story, limits)


def test_a_request_that_was_answered_is_not_kept() -> None:
    """Nor counted, where the client goes first."""

    async def story(world: World) -> None:
        client = await world.connect()
        client.send(post(b"x" * 90_000, path=b"/later"))
        await until(lambda: world.application.held and world.server.state.held == 90_000)
        world.application.held[0].respond(200, b"text/plain", b"")
        await client.answer()
        assert world.server.state.held == 0 and world.application.held[0].body == b""
        client.send(post(b"x" * 90_000, path=b"/later"))
        await until(lambda: world.server.state.held == 90_000)
        client.writer.transport.abort()
        await until(lambda: world.server.state.held == 0)

    converse(story)


def test_memory_is_given_back_again_after_it_failed_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def trim() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise OSError("no descriptors")

    monkeypatch.setattr(server, "Trimmer", lambda: trim)
    monkeypatch.setattr(server, "PAUSE", 0.0)

    async def story(_: World) -> None:
        await until(lambda: len(calls) >= 2)

    converse(story)
    assert "cannot give memory back" in capfd.readouterr().err
