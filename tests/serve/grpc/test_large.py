"""Messages that take long to decode do not keep the event loop from others, and are bounded."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.serve.http.test_offload import Counting
from tests.serve.running import Running, running
from torchpar.serve.limits import Limits

COUNT = 60_000


@pytest.fixture
def world() -> Iterator[Running]:
    with running(grpc=True, limits=Limits(json=200_000)) as started:
        started.service.threads.shutdown()
        started.service.threads = Counting(2)
        yield started


def request(model: str, datatype: str, count: int) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(model_name=model)
    made.inputs.add(name="x", datatype=datatype, shape=[count, 1])
    return made


def infer(world: Running, asked: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
    with grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}") as channel:
        return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(asked)


def refusal(world: Running, asked: service_pb2.ModelInferRequest) -> str:
    with pytest.raises(grpc.RpcError) as error:
        infer(world, asked)
    return f"{error.value.code().name}: {error.value.details()}"


def test_many_typed_contents_are_decoded_beside_and_too_many_refused(world: Running) -> None:
    """A megabyte of numbers takes most of a second to decode."""
    asked = request("identity_int32", "INT32", COUNT)
    asked.inputs[0].contents.int_contents.extend([7] * COUNT)
    assert infer(world, asked).raw_output_contents[0] == struct.pack("<i", 7) * COUNT
    assert world.service.threads.count == 1
    asked.inputs[0].contents.int_contents.extend([7] * 200_000)
    assert refusal(world, asked).startswith("INVALID_ARGUMENT: the message has more than 200000 bytes besides raw_")


def test_raw_contents_are_taken_as_they_are(world: Running) -> None:
    """However large."""
    asked = request("identity_int32", "INT32", COUNT * 10)
    asked.raw_input_contents.append(b"abcd" * COUNT * 10)
    assert infer(world, asked).raw_output_contents[0] == asked.raw_input_contents[0]
    assert world.service.threads.count == 0


def test_a_message_of_very_many_small_fields_is_refused(world: Running) -> None:
    """Empty raw contents, or fields that nobody knows, and in calls that read next to nothing."""
    with grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}") as channel:
        for call, field in (("ModelInfer", b"\x3a\0"), ("ServerLive", b"\x78\0")):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(f"/inference.GRPCInferenceService/{call}")(field * 200_000)
            assert "the message has more than 200000 bytes" in str(error.value.details())


def test_raw_bytes_elements_are_taken_apart_beside_for_models_that_want_them(world: Running) -> None:
    asked = request("text", "BYTES", COUNT)
    asked.raw_input_contents.append(struct.pack("<I1s", 1, b"a") * COUNT)
    assert infer(world, asked).raw_output_contents[0] == asked.raw_input_contents[0]
    assert world.service.threads.count == 1
    asked.model_name = "identity_int32"
    assert refusal(world, asked) == "INVALID_ARGUMENT: model 'identity_int32' has no input 'x' of BYTES"
    assert world.service.threads.count == 1
