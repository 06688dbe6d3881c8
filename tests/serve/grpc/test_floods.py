"""What one client of gRPC may take of the server is bounded in bytes and in time, and others are served meanwhile."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest
from tritonclient.grpc import service_pb2

from tests.serve.echo import EchoEngine, EchoTicket
from tests.serve.grpc.raw import INFER, LIVE, STREAM, Raw, block, call, message
from tests.serve.grpc.test_unread import until
from tests.serve.running import Running, running
from torchpar.serve.engine.requests import Done, Request, Response, Ticket
from torchpar.serve.grpc import frames, hpack
from torchpar.serve.grpc.connection import Connection
from torchpar.serve.grpc.frames import frame
from torchpar.serve.grpc.taking import SOON_SECONDS, TURN
from torchpar.serve.limits import MANY_SMALL, Limits
from torchpar.serve.tensors import Tensor

OPEN = frames.END_HEADERS
WHOLE = frames.END_HEADERS | frames.END_STREAM


def is_served(world: Running) -> bool:
    """Whether a client that has just come is."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}", options) as channel:
        return bytes(channel.unary_unary(LIVE.decode())(b"", timeout=300)) == b"\x08\x01"


@contextmanager
def client(world: Running) -> Iterator[Raw]:
    raw = Raw(world.grpc_port)
    try:
        yield raw
    finally:
        raw.close()


def begin(raw: Raw, stream: int, size: int, sent: int) -> None:
    """A message that is announced to be so long, and so much of it."""
    raw.send(frame(frames.HEADERS, OPEN, stream, block(INFER)), frame(frames.DATA, 0, stream, message(size)))
    for _ in range(sent // 16384):
        raw.send(frame(frames.DATA, 0, stream, bytes(16384)))


def test_messages_that_are_not_ended_are_bounded_together() -> None:
    """One more is refused, and so is one that says to be too large; small ones are taken all the same."""
    with running(grpc=True, limits=Limits(held=1_000_000, body=900_000)) as world, client(world) as raw:
        begin(raw, 1, 800_000, 780_000)
        until(lambda: world.server.state.held > 700_000)
        begin(raw, 3, 800_000, 0)
        assert raw.status(3) == (14, "the server holds as many requests as it may; try again")
        begin(raw, 5, 2_000_000, 0)
        assert raw.status(5) == (8, "the message has 2000000 bytes; the limit is 1948576")
        assert 700_000 < world.server.state.held < 1_000_000
        assert is_served(world)
        raw.close()
        until(lambda: world.server.state.held == 0)


@pytest.mark.parametrize("size", [16_000, 60_000])
def test_whole_messages_of_calls_that_do_not_end_are_bounded_together(size: int) -> None:
    """However small each is; beside so much of each connection that is always taken."""
    with running(grpc=True, limits=Limits(held=1_000_000)) as world:
        held = [Raw(world.grpc_port) for _ in range(3)]
        for raw in held:
            for stream in range(1, 129, 2):
                data = message(size, bytes(size))
                raw.send(frame(frames.HEADERS, OPEN, stream, block(INFER)))
                raw.send(*(frame(frames.DATA, 0, stream, data[at : at + 16_000]) for at in range(0, len(data), 16_000)))
            raw.send(PING)
            raw.until(frames.PING)
        assert 1_000_000 <= world.server.state.held + size
        assert world.server.state.held <= 1_000_000 + len(held) * (MANY_SMALL + size)
        assert is_served(world)
        for raw in held:
            raw.close()
        until(lambda: world.server.state.held == 0)


def test_messages_of_a_stream_are_held_until_they_are_answered() -> None:
    with running(grpc=True) as world, client(world) as raw:
        raw.send(frame(frames.HEADERS, OPEN, 1, block(STREAM)))
        for size in (3, 100, 40_000):
            data = message(size, b"\xff" * size)
            raw.send(*(frame(frames.DATA, 0, 1, data[at : at + 16_000]) for at in range(0, len(data), 16_000)))
        raw.send(frame(frames.DATA, frames.END_STREAM, 1))
        assert raw.status(1) == (0, "")
        until(lambda: world.server.state.held == 0)


def test_time_in_which_a_message_or_a_frame_is_not_read_is_not_its_clients() -> None:
    """Its connection is read no more while answers of other calls wait to be taken."""
    with running(grpc=True, limits=Limits(body_seconds=1000, header_seconds=1000)) as world, client(world) as raw:
        begin(raw, 1, 100, 0)
        rest = frame(frames.DATA, frames.END_STREAM, 1, b"\xff" * 100)
        raw.send(PING, rest[:50])
        raw.until(frames.PING)
        (connection,) = world.server.state.all_connections()
        world.server.loop.call_soon_threadsafe(connection.pause_writing)
        world.pass_time(3000)
        raw.send(rest[50:])
        world.server.loop.call_soon_threadsafe(connection.resume_writing)
        assert raw.status(1)[0] == 3
        begin(raw, 3, 100, 0)
        raw.send(PING)
        raw.until(frames.PING)
        world.pass_time(1001)
        assert raw.status(3) == (4, "the request did not come in time")


def test_a_connection_on_which_a_message_arrives_is_not_the_idle_one() -> None:
    """A few bytes now and then make no difference."""
    with running(grpc=True, limits=Limits(connections=2)) as world, client(world) as raw, client(world) as idle:
        begin(raw, 1, 1_000_000, 0)
        for each in (raw, idle):
            each.send(PING)
            each.until(frames.PING)
        threading.Event().wait(0.2)
        raw.send(frame(frames.DATA, 0, 1, bytes(16_000)))
        idle.send(frame(frames.HEADERS, OPEN, 1, block(STREAM)), frame(frames.DATA, 0, 1, message(100, b"x")))
        for each in (raw, idle):
            each.send(PING)
            each.until(frames.PING)
        threading.Event().wait(0.2)
        assert is_served(world)
        assert idle.end() == (frames.NO_ERROR, "another client needs the place")


class Waiting(EchoEngine):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[tuple[Request, Done]] = []

    def submit(self, request: Request, done: Done) -> Ticket:
        self.late.append((request, done))
        return EchoTicket()

    def answer(self) -> None:
        late, self.late = self.late, []
        for request, done in late:
            done(Response(request.model, "1", request.id, [Tensor("x", "UINT8", (1, 1), b"a")]))


def test_streams_of_a_connection_are_computed_within_a_bound_together() -> None:
    """One message of each, and so many more as it may have calls; all are answered in the end."""
    asked = service_pb2.ModelInferRequest(model_name="m")
    asked.inputs.add(name="x", datatype="UINT8", shape=[1, 1])
    asked.raw_input_contents.append(b"a")
    data = asked.SerializeToString()
    engine = Waiting()
    with running(engine, grpc=True, limits=Limits(calls=10)) as world, client(world) as raw:
        raw.send(frames.window_update(0, 1 << 24))
        for stream in range(1, 21, 2):
            raw.send(frame(frames.HEADERS, OPEN, stream, block(STREAM)))
            raw.send(frame(frames.DATA, frames.END_STREAM, stream, message(len(data), data) * 32))
        raw.send(PING)
        raw.until(frames.PING)
        until(lambda: len(engine.late) == 19)  # ten of the first stream, and one of each other

        def answer() -> None:
            assert len(engine.late) < 20
            engine.answer()
            world.server.loop.call_later(0.001, answer)

        world.server.loop.call_soon_threadsafe(answer)
        assert raw.answered(10) == set(range(1, 21, 2))
        assert all(connection.working == 0 for connection in world.server.state.all_connections())


@pytest.mark.parametrize("sent", [0, 10_000, 100_000])
def test_a_message_that_does_not_come_in_time_is_given_up(sent: int) -> None:
    """However much of it came before."""
    with running(grpc=True, limits=Limits(body_seconds=0.3)) as world, client(world) as raw:
        begin(raw, 1, 200_000, sent)
        assert raw.status(1) == (4, "the request did not come in time")
        until(lambda: world.server.state.held == 0)
        raw.send(call(3))
        assert raw.status(3) == (0, "")


def test_a_stream_may_rest_between_its_messages_and_not_within_one() -> None:
    with running(grpc=True, limits=Limits(body_seconds=0.3)) as world, client(world) as raw:
        raw.send(frame(frames.HEADERS, OPEN, 1, block(STREAM)), frame(frames.HEADERS, OPEN, 3, block(STREAM)))
        raw.send(frame(frames.DATA, 0, 3, message(100, b"x")))
        assert raw.status(3) == (4, "the request did not come in time")
        raw.send(frame(frames.DATA, frames.END_STREAM, 1))
        assert raw.status(1) == (0, "")


PING = frame(frames.PING, 0, 0, b"12345678")
RESETS = [
    frame(frames.HEADERS, OPEN, stream, block(INFER)) + frames.reset(stream, frames.CANCEL)
    for stream in range(1, 2001, 2)
]
ANSWERED = call(1)
FLOODS = {
    "pings": [PING * 1000],
    "settings": [frames.settings({frames.WINDOW: value % 2}) for value in range(1000)],
    "priorities": [frame(frames.PRIORITY, 0, 1, bytes(5)) * 1000],
    "unknown": [frame(77, 0, 0) * 1000],
    "windows": [frames.window_update(0, 1) * 1000],
    "resets": RESETS,
    "empty data": [frame(frames.HEADERS, OPEN, 1, block(STREAM)), frame(frames.DATA, 0, 1) * 1000],
    "empty headers": [frame(frames.HEADERS, 0, 1, block(STREAM)), frame(frames.CONTINUATION, 0, 1) * 1000],
    "padding": [
        frame(frames.HEADERS, OPEN, 1, block(STREAM)), frame(frames.DATA, frames.PADDED, 1, b"\xff" + bytes(255)) * 1000
    ],
    "data after the answer": [ANSWERED, frame(frames.DATA, frames.END_STREAM, 1) * 1000],
    "headers after the answer": [ANSWERED, frame(frames.HEADERS, WHOLE, 1, b"\x82") * 1000],
    "large headers after the answer": [ANSWERED, frame(frames.HEADERS, WHOLE, 1, b"\x82" * 8000) * 100],
    "no requests": [frame(frames.HEADERS, WHOLE, stream, b"\x83") for stream in range(1, 2001, 2)],
}


@contextmanager
def calming(seen: Callable[[], object]) -> Iterator[None]:
    """Tells when a connection is read slowly from now on."""
    with pytest.MonkeyPatch.context() as patch:
        start = Connection._start_calm
        patch.setattr(Connection, "_start_calm", lambda self: (start(self), seen()))
        yield


@pytest.mark.parametrize("kind", FLOODS)
def test_frames_that_ask_for_nothing_are_read_slowly(kind: str) -> None:
    """Others do not wait, and who goes on for long is cut off."""
    calmed = threading.Event()
    with running(grpc=True, limits=Limits(header_seconds=300)) as world, client(world) as raw, calming(calmed.set):
        begin, *again = FLOODS[kind]
        raw.send(begin)
        if begin == ANSWERED:
            assert raw.status(1) == (0, "")

        def send() -> None:
            with suppress(OSError):
                while True:
                    raw.send(*(again or [begin]))

        flood = threading.Thread(target=send)
        flood.start()
        assert calmed.wait(300)
        assert is_served(world)
        world.hurry(0.7)
        until(lambda: world.server.state.connections() == 0)
        flood.join()
        assert world.server.state.calmed == 0


def test_a_client_that_was_read_slowly_is_served() -> None:
    with running(grpc=True) as world, client(world) as raw:
        raw.send(PING * 600, call(1))
        assert raw.status(1) == (0, "")
        assert world.server.state.calmed == 0

@contextmanager
def never_calmed(world: Running) -> Iterator[None]:
    """No connection is read slowly meanwhile."""
    seen: list[int] = []
    with calming(lambda: seen.append(1)):
        yield
    assert not seen and not world.server.state.calmed


def test_calls_with_large_metadata_are_read_like_others() -> None:
    """Tokens and traces of several KB on each of many calls that are sent at once."""
    with running(grpc=True) as world, client(world) as raw, never_calmed(world):
        for begin in range(1, 1001, 200):
            streams = range(begin, begin + 200, 2)
            raw.send(*(call(stream, LIVE, message(0), (b"authorization", b"x" * 14_000)) for stream in streams))
            assert raw.answered(100) == set(streams)


def test_cancelled_calls_that_had_their_time_cost_nothing() -> None:
    """Those of a model that hangs, on four connections with as many calls as may be."""
    streams = range(1, 257, 2)
    with running(grpc=True) as world, never_calmed(world):
        held = [Raw(world.grpc_port) for _ in range(4)]
        for _ in range(2):
            for raw in held:
                raw.send(*(frame(frames.HEADERS, OPEN, stream, block(STREAM)) for stream in streams))
                raw.send(PING)
                raw.until(frames.PING)
            threading.Event().wait(2 * SOON_SECONDS)
            for raw in held:
                raw.send(*(frames.reset(stream, frames.CANCEL) for stream in streams))
            streams = range(streams.stop, streams.stop + 256, 2)
        for raw in held:
            raw.send(call(streams.start))
            assert raw.status(streams.start) == (0, "")
            raw.close()


def test_resets_are_forgiven_however_many_clients_are_read_slowly() -> None:
    """What counts against a client is what it sent, not how long it was not read for the sake of others."""
    with running(grpc=True, limits=Limits(header_seconds=300)) as world, client(world) as raw:
        raw.send(PING)
        raw.until(frames.PING)
        world.hurry(1.5)
        world.server.loop.call_soon_threadsafe(setattr, world.server.state, "calmed", 4)
        raw.send(*RESETS[:60], call(121))
        assert raw.status(121) == (0, "")
        until(lambda: world.server.state.calmed == 4)
        world.server.state.calmed = 0


def test_headers_are_decoded_in_turns() -> None:
    """Of very many at once no more than some in one turn of the loop, in which others are served."""
    turns: list[int] = []
    with running(grpc=True) as world, client(world) as raw, pytest.MonkeyPatch.context() as patch:
        read = Connection._read

        def counting(self: Connection) -> None:
            before = self.newest
            read(self)
            turns.append(self.newest - before)

        patch.setattr(Connection, "_read", counting)
        raw.send(b"".join(call(stream, LIVE, message(0), (b"a", b"x" * 14_000)) for stream in range(1, 201, 2)))
        assert len(raw.answered(100)) == 100
        assert max(turns) == 2 * (TURN // 14_000 + 1)


@pytest.mark.parametrize(
    ("send", "why"),
    [
        (frame(frames.HEADERS, 0, 1, block(LIVE)), "a frame or a header did not come in time"),
        (frames.head(frames.DATA, 0, 1, 100) + b"x", "a frame or a header did not come in time"),
        (frame(frames.HEADERS, 0, 1, bytes(16000)) + frame(frames.CONTINUATION, 0, 1, bytes(16000)) * 9,
         "a header of more than 131072 bytes"),
        (frames.settings(dict.fromkeys(range(10, 500), 0)), "very many settings"),
    ],
)  # fmt: skip
def test_a_header_is_bounded_in_bytes_and_time(send: bytes, why: str) -> None:
    with running(grpc=True, limits=Limits(header_seconds=300)) as world, client(world) as raw:
        raw.send(PING)
        raw.until(frames.PING)
        raw.send(send)
        if why.endswith("in time"):
            world.hurry(0.3)
        assert raw.end() == (frames.CALM, why)
        assert is_served(world)


def test_answers_to_clients_that_have_gone_leave_the_journal_alone(caplog: pytest.LogCaptureFixture) -> None:
    with running(grpc=True) as world:
        for _ in range(10):
            with client(world) as raw:
                raw.send(*(frame(frames.HEADERS, OPEN, stream, block(STREAM)) for stream in range(1, 255, 2)))
                raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        world.server.loop.call_soon_threadsafe(lambda: [each.drain() for each in world.server.state.all_connections()])
        until(lambda: world.server.state.connections() == 0)
    assert caplog.messages == []


BIG = b"\x40\x03big\x7f\xe9\x06" + b"v" * 1000


@pytest.mark.parametrize(
    "fields",
    [
        BIG + b"\xbe" * 100,
        hpack.encode(((b"cookie", b"x" * 40_000),)) + BIG,
        hpack.encode(((b"a", b"x"),)) * 9000 + BIG,
    ],
)
def test_metadata_that_are_too_large_are_told_so_and_the_connection_goes_on(fields: bytes) -> None:
    """In bytes that stand for a field of a thousand, in a field, or in many; the table stays as the client has it."""
    with running(grpc=True) as world, client(world) as raw:
        raw.send(frame(frames.HEADERS, OPEN, 1, block(STREAM)))
        sent = block(LIVE) + fields
        pieces = [sent[at : at + 16_000] for at in range(0, len(sent), 16_000)]
        raw.send(frame(frames.HEADERS, OPEN * (len(pieces) == 1) | frames.END_STREAM, 3, pieces.pop(0)))
        while pieces:
            raw.send(frame(frames.CONTINUATION, OPEN * (len(pieces) == 1), 3, pieces.pop(0)))
        assert raw.status(3) == (8, "the metadata are larger than 32768 bytes")
        raw.send(frame(frames.HEADERS, OPEN, 5, block(LIVE) + b"\xbe"), frame(frames.DATA, 1, 5, message(0)))
        assert raw.status(5) == (0, "")
        raw.send(frame(frames.DATA, frames.END_STREAM, 1))
        assert raw.status(1) == (0, "")


@pytest.mark.parametrize("path", [LIVE, STREAM])
def test_the_first_header_says_that_the_table_is_as_small_as_the_client_wants_it(path: bytes) -> None:
    """RFC 7541, 4.2. Settings of other sizes follow and say nothing."""
    with running(grpc=True) as world, client(world) as raw:
        raw.send(call(1), frames.settings({frames.HEADER_TABLE: 8192}), call(3))
        assert raw.until(frames.HEADERS, of=1)[:1] == raw.until(frames.HEADERS, of=3)[:1] == b"\x88"
        for stream in (5, 9):
            raw.send(*(frames.settings({frames.HEADER_TABLE: size}) for size in (100, 4096, 0)), PING)
            raw.until(frames.PING)
            raw.send(call(stream, path, b"" if path == STREAM else message(0)))
            assert raw.until(frames.HEADERS, of=stream)[:2] == (b" \x88" if stream == 5 else b"\x88\0")


def test_a_stream_that_is_begun_during_a_drain_ends_with_it() -> None:
    """Its client had not read yet that it should go elsewhere."""
    with running(grpc=True) as world, client(world) as raw:
        raw.send(call(1))
        assert raw.status(1) == (0, "")
        world.grace = 60.0

        def drain() -> None:
            for connection in world.server.state.all_connections():
                connection.start_drain()
                connection.data_received(frame(frames.HEADERS, OPEN, 3, block(STREAM)))
                connection.drain()

        world.server.loop.call_soon_threadsafe(drain)
        until(lambda: world.server.state.connections() == 0)


def test_a_connection_has_no_more_calls_than_it_is_told_and_idle_ones_give_way() -> None:
    limits = Limits(calls=4, connections=3)
    with running(grpc=True, limits=limits) as world:
        held = [Raw(world.grpc_port) for _ in range(3)]
        for raw in held:
            raw.send(*(frame(frames.HEADERS, OPEN, stream, block(STREAM)) for stream in range(1, 12, 2)))
            assert raw.until(frames.RST_STREAM, of=9) == struct.pack(">I", frames.REFUSED_STREAM)
        until(lambda: world.server.state.connections() == 3)
        threading.Event().wait(0.2)  # until they are idle
        assert is_served(world)
        assert held[0].end() == (frames.NO_ERROR, "another client needs the place")
        held[2].send(frame(frames.DATA, frames.END_STREAM, 1))
        assert held[2].status(1) == (0, "")
        for raw in held:
            raw.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(frames.DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR),
        (frame(frames.HEADERS, OPEN, 2, block(LIVE)), frames.PROTOCOL_ERROR),
        (call(1) + frame(frames.HEADERS, 0, 3, block(LIVE)) + PING, frames.PROTOCOL_ERROR),
        (frame(frames.HEADERS, OPEN, 1, b"\xff\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
        (frame(frames.HEADERS, OPEN | frames.PADDED, 1, b"\x09abc"), frames.PROTOCOL_ERROR),
        (frame(frames.PING, 0, 0, b"short"), frames.FRAME_SIZE_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 0, bytes(4)), frames.PROTOCOL_ERROR),
        (frames.window_update(0, frames.LARGEST), frames.FLOW_CONTROL_ERROR),
        (frames.settings({frames.WINDOW: 1 << 31}), frames.FLOW_CONTROL_ERROR),
        (frames.settings({frames.FRAME: 1}), frames.PROTOCOL_ERROR),
        (frames.reset(5, 0), frames.PROTOCOL_ERROR),
        (frame(frames.PUSH_PROMISE, 0, 1), frames.PROTOCOL_ERROR),
        (frames.head(frames.DATA, 0, 1, 1 << 20), frames.FRAME_SIZE_ERROR),
        (frame(frames.HEADERS, WHOLE, 1, block(LIVE)) + frame(frames.DATA, 0, 1, b"x"), frames.STREAM_CLOSED),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection_and_nothing_else(data: bytes, code: int) -> None:
    with running(grpc=True) as world, client(world) as raw:
        raw.send(data)
        assert raw.end()[0] == code
        assert is_served(world)


@pytest.mark.parametrize(
    "fields",
    [
        ((b":path", b"/"),),  # twice
        ((b"Upper", b"a"),),
        ((b"connection", b"close"),),
        ((b"a", b"b\r\nc: d"),),
        ((b"a", b"\0"),),
        ((b"te", b"gzip"),),
        ((b"a b", b"c"),),
    ],
)
def test_fields_that_no_client_may_send_reset_the_stream(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    with running(grpc=True) as world, client(world) as raw:
        raw.send(frame(frames.HEADERS, WHOLE, 1, block(LIVE, *fields)))
        assert raw.until(frames.RST_STREAM) == struct.pack(">I", frames.PROTOCOL_ERROR)
        raw.send(call(3))
        assert raw.status(3) == (0, "")


@pytest.mark.parametrize("field", [b"x-forwarded-for", b"forwarded", b"via"])
def test_a_client_of_a_proxy_changes_nothing(field: bytes) -> None:
    with running(grpc=True) as world, client(world) as raw:
        path = LIVE.replace(b"ServerLive", b"RepositoryModelUnload")
        raw.send(frame(frames.HEADERS, OPEN, 1, block(path, (field, b"10.0.0.1"))))
        raw.send(frame(frames.DATA, frames.END_STREAM, 1, message(8, b"\x12\x06simple")))
        assert raw.status(1) == (7, "models and settings can be changed from this host only")
        assert not world.engine.unloaded


@pytest.mark.parametrize("path", [b"/", LIVE])
@pytest.mark.parametrize(
    ("method", "kind", "status"),
    [
        (b"GET", b"application/grpc", b"405"),
        (b"HEAD", None, b"405"),
        (b"POST", None, b"415"),
        (b"POST", b"application/json", b"415"),
        (b"POST", b"application/grpc+proto", b"200"),
    ],
)
def test_what_is_no_call_is_answered_as_http_does(
    path: bytes, method: bytes, kind: bytes | None, status: bytes
) -> None:
    """A health check that expects 200 must not be content with it."""
    fields = ((b":method", method), (b":scheme", b"http"), (b":path", path))
    with running(grpc=True) as world, client(world) as raw:
        header = hpack.encode(fields + (((b"content-type", kind),) if kind else ()))
        raw.send(frame(frames.HEADERS, WHOLE, 1, header))
        found = hpack.Decoder(4096).decode(raw.until(frames.HEADERS, of=1))
        assert found is not None
        assert found[0] == (b":status", status)
        raw.send(frame(frames.HEADERS, OPEN, 3, header), call(5))
        assert raw.status(5) == (0, "")
