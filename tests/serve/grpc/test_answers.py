"""What becomes of a call whose request is with the engine, in a form that is known, and in any other."""

from __future__ import annotations

import gzip
from contextlib import suppress
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.serve.echo import EchoEngine
from tests.serve.grpc.raw import INFER, STREAM, Raw, call, message
from tests.serve.grpc.test_unread import until
from tests.serve.running import Running, running
from torchpar.serve.engine.requests import Done, Request, Response, Ticket
from torchpar.serve.errors import ServeError
from torchpar.serve.grpc import frames
from torchpar.serve.grpc.frames import WORD, frame
from torchpar.serve.tensors import Tensor


class Pending(EchoEngine, Ticket):
    """Keeps requests, until it is told what to answer; as an engine may, it answers at once what is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[tuple[Request, Done]] = []
        self.cancelled = 0

    def submit(self, request: Request, done: Done) -> Ticket:
        self.pending.append((request, done))
        return self

    def cancel(self) -> None:
        self.cancelled += 1
        self.pending.pop()[1](ServeError(499, "cancelled"))

    def answer(self, outcome: Any) -> None:
        with suppress(Exception):
            self.pending.pop()[1](outcome)


def ask(raw: Raw, compressed: bool) -> None:
    """One request, as call 1."""
    asked = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"a"])
    asked.inputs.add(name="x", datatype="UINT8", shape=[1, 1])
    data = asked.SerializeToString()
    if compressed:
        data = gzip.compress(data)
        raw.send(call(1, INFER, b"\1" + message(len(data), data)[1:], (b"grpc-encoding", b"gzip")))
    else:
        raw.send(call(1, INFER, message(len(data), data)))


@pytest.fixture
def world() -> Any:
    with running(Pending(), grpc=True) as world:
        yield world


@pytest.fixture
def raw(world: Running) -> Any:
    raw = Raw(world.grpc_port)
    yield raw
    raw.close()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("how", ["reset", "close"])
def test_what_nobody_waits_for_is_cancelled(world: Running, raw: Raw, how: str, compressed: bool) -> None:
    ask(raw, compressed)
    until(lambda: len(world.engine.pending) == 1)
    if how == "reset":
        raw.send(frame(frames.RST_STREAM, 0, 1, WORD.pack(frames.CANCEL)))
    else:
        raw.close()
    until(lambda: world.engine.cancelled == 1)
    assert not world.engine.pending


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (ServeError(504, "too late"), (4, "too late")),
        (ServeError(503, "100 % full: é"), (14, "100 %25 full: %C3%A9")),
        (Response("m", "1", "", [Tensor("y", "UINT8", (1, 1), b"a")]), (0, "")),
        # Mistakes of the engine's.
        (Response("m", "1", "", [None]), (13, "the server failed: AttributeError")),  # type: ignore[list-item]
        (None, (13, "the server failed: AttributeError")),
    ],
)
def test_every_outcome_is_told(
    world: Running, raw: Raw, outcome: Any, status: tuple[int, str], compressed: bool
) -> None:
    ask(raw, compressed)
    until(lambda: len(world.engine.pending) == 1)
    world.server.loop.call_soon_threadsafe(world.engine.answer, outcome)
    assert raw.status(1) == status
    world.errors.clear()  # the task's, which the journal has


def test_an_error_in_a_stream_says_of_which_request() -> None:
    """Whether it is found in the message, or by the engine."""
    asked = service_pb2.ModelInferRequest(model_name="simple", raw_input_contents=[b"a"])
    asked.inputs.add(name="x", datatype="UINT8", shape=[1, 1])
    several = []
    for number, shape in enumerate(([1, 1], [2, 2], [-5])):
        asked.id = str(number)
        asked.inputs[0].shape[:] = shape
        several.append(service_pb2.ModelInferRequest.FromString(asked.SerializeToString()))
    with running(grpc=True) as world, grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}") as channel:
        answers = list(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(several)))
    assert all(answer.error_message for answer in answers)
    named = [(answer.infer_response.id, answer.infer_response.model_name) for answer in answers]
    assert named == [("0", "simple"), ("1", "simple"), ("2", "simple")]


def test_a_message_of_a_stream_that_is_none_is_told(world: Running, raw: Raw) -> None:
    raw.send(call(1, STREAM, message(3, b"\xff\xff\xff")))
    payload = raw.until(frames.DATA, of=1)
    answer = service_pb2.ModelStreamInferResponse.FromString(payload[5:])
    assert answer.error_message.startswith("not the message of this call")
    assert raw.status(1) == (0, "")
