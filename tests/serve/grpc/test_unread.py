"""Answers that nobody takes over gRPC: bounded with those over HTTP, and their clients cut off."""

from __future__ import annotations

import asyncio
import queue
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.serve.echo import EchoEngine, EchoTicket
from tests.serve.grpc.raw import INFER, Raw, call, message
from tests.serve.running import Running, running
from torchpar.serve.engine.requests import Done, Request, Response, Ticket
from torchpar.serve.grpc import frames
from torchpar.serve.limits import Limits
from torchpar.serve.tensors import Tensor

SIZE = 5_000_000
BUSY = "clients have not taken as many bytes of their answers as may wait; try again"


class Images(EchoEngine):
    """Small questions, large answers."""

    def submit(self, request: Request, done: Done) -> Ticket:
        self.requests.append(request)
        answer = Response(request.model, "1", request.id, [Tensor("x", "UINT8", (1, SIZE), bytes(SIZE))])
        asyncio.get_running_loop().call_soon(done, answer)
        return EchoTicket()


def question() -> service_pb2.ModelInferRequest:
    asked = service_pb2.ModelInferRequest(model_name="image")
    asked.inputs.add(name="x", datatype="UINT8", shape=[1, 1])
    asked.raw_input_contents.append(b"a")
    return asked


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def slow_client(world: Running, calls: int) -> socket.socket:
    """Asks, and never lets the server send more than HTTP/2 grants from the beginning: 64 KiB."""
    message = question().SerializeToString()
    fields = b"\x83\x86"  # POST, http
    for name, value in (
        (b":path", b"/inference.GRPCInferenceService/ModelInfer"), (b":authority", b"localhost"),
        (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ):  # fmt: skip
        fields += b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    for stream in range(1, 2 * calls, 2):
        sent += frame(1, 4, stream, fields)
        sent += frame(0, 1, stream, b"\0" + struct.pack(">I", len(message)) + message)
    client = socket.create_connection(("127.0.0.1", world.grpc_port))
    client.sendall(sent)
    return client


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def infer(stub: Any) -> str:
    """What is wrong with the answer."""
    try:
        return "" if len(stub.ModelInfer(question()).raw_output_contents[0]) == SIZE else "short"
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


def channel(world: Running) -> grpc.Channel:
    options = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]
    return grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}", options)


def test_answers_that_nobody_takes_are_bounded_and_their_clients_cut_off() -> None:
    """A call more is UNAVAILABLE; when the slow client is gone all is as before."""
    limits = Limits(owed=8_000_000, write_seconds=300)
    with running(Images(), grpc=True, limits=limits) as world, channel(world) as other:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(other)
        assert infer(stub) == ""
        until(lambda: world.server.state.owed == 0)
        with slow_client(world, calls=3) as slow:
            until(lambda: len(world.engine.requests) == 4 and world.server.state.owed)
            assert SIZE <= world.server.state.owed < SIZE + 1000
            assert infer(stub) == f"UNAVAILABLE: {BUSY}"
            world.pass_time(301)
            with suppress(ConnectionResetError):
                while slow.recv(1 << 20):
                    pass
        until(lambda: world.server.state.owed == 0)
        assert infer(stub) == ""
        until(lambda: world.server.state.owed == 0)


def test_one_connection_has_its_own_bound_and_may_have_one_answer_of_any_size() -> None:
    with running(Images(), grpc=True, limits=Limits(owed_each=4_000_000)) as world, channel(world) as other:
        with slow_client(world, calls=2) as slow:
            until(lambda: len(world.engine.requests) == 2 and world.server.state.owed)
            assert SIZE <= world.server.state.owed < SIZE + 1000
            assert infer(service_pb2_grpc.GRPCInferenceServiceStub(other)) == ""
            slow.close()
            until(lambda: world.server.state.owed == 0)


@pytest.mark.parametrize("read", [True, False])
def test_answers_of_a_stream_wait_in_bounds(read: bool) -> None:
    """What is too much is refused in its turn, or all forgotten with the stream."""
    with running(Images(), grpc=True, limits=Limits(owed_each=4_000_000)) as world, channel(world) as client:
        asked: queue.Queue[Any] = queue.Queue()
        for _ in range(4):
            asked.put(question())
        answers = service_pb2_grpc.GRPCInferenceServiceStub(client).ModelStreamInfer(iter(asked.get, None))
        until(lambda: len(world.engine.requests) == 4 and world.server.state.owed)
        assert SIZE <= world.server.state.owed < SIZE + 1000
        if read:
            asked.put(None)
            assert [answer.error_message for answer in answers] == ["", BUSY, BUSY, BUSY]
        else:
            answers.cancel()
            asked.put(None)
        until(lambda: world.server.state.owed == 0)


class FirstLate(Images):
    """The first question is answered when it is told to be."""

    def submit(self, request: Request, done: Done) -> Ticket:
        if self.requests:
            return super().submit(request, done)
        self.requests.append(request)
        self.late = done
        return EchoTicket()


def test_an_answer_whose_turn_has_not_come_is_nobodys_delay() -> None:
    """In a stream it waits for those before it, for as long as they take."""
    limits = Limits(write_seconds=300)
    with running(FirstLate(), grpc=True, limits=limits) as world, channel(world) as client:
        asked: queue.Queue[Any] = queue.Queue()
        answers = service_pb2_grpc.GRPCInferenceServiceStub(client).ModelStreamInfer(iter(asked.get, None))
        asked.put(question())
        until(lambda: world.engine.requests)
        asked.put(question())
        until(lambda: world.server.state.owed)
        world.pass_time(1500)  # several times as long as a client may take nothing
        answer = Response("image", "1", "", [Tensor("x", "UINT8", (1, 1), b"a")])
        world.server.loop.call_soon_threadsafe(world.engine.late, answer)
        asked.put(None)
        assert [answer.error_message for answer in answers] == ["", ""]
        until(lambda: world.server.state.owed == 0)


@pytest.mark.parametrize(
    ("of", "by", "end"),
    [
        (1, 1, frames.RST_STREAM),
        (0, 1, None),
        (1, 100_000, frames.HEADERS),
        (0, 100_000, frames.HEADERS),
    ],
)
def test_an_answer_of_which_next_to_nothing_is_taken_at_a_time_is_given_up(of: int, by: int, end: int | None) -> None:
    """With its connection, unless there the client has room for others; one that is taken slowly goes on."""
    limits = Limits(write_seconds=60, body_rate=1000, body_seconds=60)
    asked = question().SerializeToString()
    with running(Images(), grpc=True, limits=limits) as world:
        raw, taken, granted = Raw(world.grpc_port), 0, 65_535
        raw.send(frames.window_update(1 - of, 1 << 24) if of else b"")
        raw.send(call(1, INFER, message(len(asked), asked)))
        raw.send(b"" if of else frames.window_update(1, 1 << 24))

        last = None
        with suppress(OSError):
            for kind, flags, stream, payload in raw.frames():
                if stream == 1 and (kind == frames.RST_STREAM or (kind == frames.HEADERS and flags & 1)):
                    last = kind
                    break
                taken += len(payload) * (kind == frames.DATA)
                if kind == frames.DATA and taken == granted:
                    world.pass_time(40)
                    granted += by
                    raw.send(frames.window_update(of, by))
        assert last == end
        until(lambda: world.server.state.owed == 0)
        if end == frames.RST_STREAM:
            raw.send(call(3))
            assert raw.status(3) == (0, "")
        raw.close()
