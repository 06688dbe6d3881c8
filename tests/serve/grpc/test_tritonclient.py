"""Every call of tritonclient.grpc and tritonclient.grpc.aio works against the server, unmodified."""

from __future__ import annotations

import asyncio
import queue
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as client_grpc
import tritonclient.grpc.aio as client_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.serve.blocking import Blocking
from tests.serve.echo import EchoEngine
from tests.serve.running import Running, running
from torchpar.serve.front import Front
from torchpar.serve.limits import Limits

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), dtype=np.int32)


@pytest.fixture(scope="module")
def world() -> Iterator[Running]:
    with running(grpc=True, limits=Limits(body=1 << 20)) as started:
        yield started


@pytest.fixture(params=["grpc", "grpc.aio"])
def client(request: pytest.FixtureRequest, world: Running) -> Iterator[Any]:
    address = f"127.0.0.1:{world.grpc_port}"
    made = client_grpc.InferenceServerClient(address) if request.param == "grpc" else Blocking(client_aio, address)
    yield made
    made.close()


def simple_inputs() -> list[Any]:
    inputs = []
    for name, value in (("INPUT0", A), ("INPUT1", B)):
        inputs.append(client_grpc.InferInput(name, list(value.shape), "INT32"))
        inputs[-1].set_data_from_numpy(value)
    return inputs


def test_health(client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("simple", "1") is True
    assert client.is_model_ready("simple", "2") is False


def test_pings_never_end_a_connection(world: Running) -> None:
    """As a client's keepalive sends them; gRPC's own server ends a connection after the third within five minutes."""
    frame = struct.Struct(">I B I")  # length and type, flags, stream
    settings, ping, goaway, acknowledged = 4, 6, 7, 1
    with socket.create_connection(("127.0.0.1", world.grpc_port), timeout=300) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame.pack(settings, 0, 0))
        stream = sock.makefile("rb")
        for number in range(20):
            sock.sendall(frame.pack(8 << 8 | ping, 0, 0) + number.to_bytes(8, "big"))
            while True:
                word, flags, _ = frame.unpack(stream.read(frame.size))
                body = stream.read(word >> 8)
                assert word & 0xFF != goaway, body
                if (word & 0xFF, flags) == (ping, acknowledged):
                    break
            assert body == number.to_bytes(8, "big")


def test_metadata_and_config(client: Any) -> None:
    assert client.get_server_metadata().name == "torchpar"
    model = client.get_model_metadata("simple", as_json=True)
    assert model["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": ["-1", "16"]}
    config = client.get_model_config("text").config
    assert (config.max_batch_size, config.input[0].data_type) == (8, 13)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    with pytest.raises(InferenceServerException, match="not found") as error:
        client.get_model_metadata("nothing")
    assert error.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer(client: Any, compression: str | None) -> None:
    result = client.infer("simple", simple_inputs(), request_id="seven", compression_algorithm=compression)
    assert (result.as_numpy("OUTPUT0") == A + B).all() and (result.as_numpy("OUTPUT1") == A - B).all()
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", "simple", "1")
    only = client.infer("simple", simple_inputs(), outputs=[client_grpc.InferRequestedOutput("OUTPUT1")])
    assert only.as_numpy("OUTPUT0") is None and (only.as_numpy("OUTPUT1") == A - B).all()


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("BOOL", np.array([[True, False]])),
        ("INT64", np.array([[-(2**63), 2**63 - 1]])),
        ("UINT64", np.array([[0, 2**64 - 1]], dtype=np.uint64)),
        ("FP32", np.array([[1.5, -0.1]], dtype=np.float32)),
        ("FP64", np.array([[1e300, -0.1]])),
        ("FP16", np.array([[1.5, -0.1]], dtype=np.float16)),
        ("BF16", np.array([[1.5, -3.0]], dtype=ml_dtypes.bfloat16)),
        ("BYTES", np.array([[b"", b"\xff\x00abc"]], dtype=np.object_)),
        ("FP32", np.zeros((0, 3), dtype=np.float32)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.shape),
)
def test_datatypes_come_back_as_they_went(client: Any, datatype: str, value: np.ndarray) -> None:
    wanted = client_grpc.InferInput("x", list(value.shape), datatype)
    wanted.set_data_from_numpy(value)
    got = client.infer(f"identity_{datatype.lower()}", [wanted]).as_numpy("x")
    assert got.shape == value.shape and (got.astype(value.dtype) == value).all()


def test_tensors_of_16_mib_go_both_ways() -> None:
    """More than all windows together, as many at the same time as a connection may have, in calls and in a stream."""
    value = np.arange(1 << 22, dtype=np.int32).reshape(1, -1)
    wanted = client_grpc.InferInput("x", list(value.shape), "INT32")
    wanted.set_data_from_numpy(value)
    answers: queue.Queue[Any] = queue.Queue()

    def answered(result: Any, error: Any) -> None:
        answers.put(str(error) if error else bool((result.as_numpy("x") == value).all()))

    with running(grpc=True) as world, client_grpc.InferenceServerClient(f"127.0.0.1:{world.grpc_port}") as client:
        client.start_stream(callback=answered)
        for _ in range(2):
            client.async_infer("identity_int32", [wanted], callback=answered)
            client.async_stream_infer("identity_int32", [wanted])
        assert [answers.get(timeout=300) for _ in range(4)] == [True] * 4
        client.stop_stream()


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT64", "int64_contents", [-(2**63), 5]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [1.5, -2.0]),
        ("FP64", "fp64_contents", [1e300, -2.0]),
        ("BYTES", "bytes_contents", [b"a", b"\xff"]),
    ],
)
def test_typed_contents_are_understood(world: Running, datatype: str, field: str, values: list[Any]) -> None:
    """tritonclient never sends them; clients that are made from the protocol's definition do."""
    request = service_pb2.ModelInferRequest(model_name=f"identity_{datatype.lower()}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, field).extend(values)
    with grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}") as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    sent = world.engine.requests[-1].inputs[0].data
    assert response.raw_output_contents[0] == (b"\1\0\0\0a\1\0\0\0\xff" if datatype == "BYTES" else bytes(sent))


def test_classification(client: Any) -> None:
    wanted = client_grpc.InferInput("x", [1, 3], "FP32")
    wanted.set_data_from_numpy(np.array([[0.25, 4.0, 1.0]], dtype=np.float32))
    outputs = [client_grpc.InferRequestedOutput("x", class_count=2)]
    got = client.infer("identity_fp32", [wanted], outputs=outputs).as_numpy("x")
    assert got.tolist() == [[b"4.000000:1", b"1.000000:2"]]


def test_parameters_and_deadline_reach_the_engine(client: Any, world: Running) -> None:
    client.infer(
        "simple", simple_inputs(), sequence_id=7, sequence_start=True, priority=3, timeout=60_000_000,
        client_timeout=60.0, parameters={"mine": "yes", "number": 1.5}, headers={"other": "1"})  # fmt: skip
    request = world.engine.requests[-1]
    assert request.priority == 3 and request.deadline is not None
    expected = {"sequence_id": 7, "sequence_start": True, "sequence_end": False, "mine": "yes", "number": 1.5}
    assert request.parameters == expected


def test_repository(client: Any) -> None:
    index = {model.name: model.state for model in client.get_model_repository_index().models}
    assert index["simple"] == "READY"
    client.unload_model("simple")
    assert client.is_model_ready("simple") is False
    with pytest.raises(InferenceServerException, match="not loaded") as error:
        client.infer("simple", simple_inputs())
    assert error.value.status() == "StatusCode.UNAVAILABLE"
    client.load_model("simple")
    assert client.is_model_ready("simple") is True
    with pytest.raises(InferenceServerException, match="cannot be overridden"):
        client.load_model("simple", config="{}", files={"file:1/model.pt": b"x"})


def test_statistics(client: Any) -> None:
    client.infer("simple", simple_inputs())
    stats = client.get_inference_statistics("simple").model_stats[0]
    assert stats.name == "simple" and stats.inference_stats.success.count >= 1
    assert stats.batch_stats[0].compute_infer.ns > 0
    assert len(client.get_inference_statistics(as_json=True)["model_stats"]) > 1


def test_log_and_trace_settings(client: Any) -> None:
    assert client.get_log_settings().settings["log_verbose_level"].uint32_param == 0
    changed = client.update_log_settings({"log_verbose_level": 1, "log_info": True})
    assert changed.settings["log_verbose_level"].uint32_param == 1
    client.update_log_settings({"log_verbose_level": 0})
    assert client.get_trace_settings(as_json=True)["settings"]["trace_level"] == {"value": ["OFF"]}
    changed = client.update_trace_settings("simple", {"trace_level": ["TIMESTAMPS"], "trace_rate": "5"})
    assert list(changed.settings["trace_rate"].value) == ["5"]
    cleared = client.update_trace_settings("simple", {"trace_level": None, "trace_rate": None})
    assert list(cleared.settings["trace_level"].value) == ["OFF"]
    with pytest.raises(InferenceServerException, match="journal"):
        client.update_log_settings({"log_file": "/etc/passwd"})


def test_shared_memory_has_a_clear_answer(client: Any) -> None:
    assert len(client.get_system_shared_memory_status().regions) == 0
    assert len(client.get_cuda_shared_memory_status().regions) == 0
    with pytest.raises(InferenceServerException, match="maps no memory of its clients"):
        client.register_system_shared_memory("r", "/r", 64)
    with pytest.raises(InferenceServerException, match="maps no memory of its clients"):
        client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64)
    client.unregister_system_shared_memory("r")
    client.unregister_cuda_shared_memory()
    shared = client_grpc.InferInput("INPUT0", [1, 16], "INT32")
    shared.set_shared_memory("r", 64)
    with pytest.raises(InferenceServerException, match="send the tensor itself"):
        client.infer("simple", [shared])


def test_async_infer(world: Running) -> None:
    client = client_grpc.InferenceServerClient(f"127.0.0.1:{world.grpc_port}")
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(20):
        client.async_infer("simple", simple_inputs(), callback=lambda result, error: answers.put((result, error)))
    for _ in range(20):
        result, error = answers.get(timeout=300)
        assert error is None and (result.as_numpy("OUTPUT0") == A + B).all()
    client.close()


def test_a_stream_answers_in_order_and_survives_errors(world: Running) -> None:
    client = client_grpc.InferenceServerClient(f"127.0.0.1:{world.grpc_port}")
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for i in range(100):
        model = "nothing" if i == 50 else "simple"
        client.async_stream_infer(model, simple_inputs(), request_id=str(i), enable_empty_final_response=True)
    got = [answers.get(timeout=300) for _ in range(100)]
    client.stop_stream()
    client.close()
    assert [str(i) for i, (result, error) in enumerate(got) if error is not None] == ["50"]
    assert "not found" in str(got[50][1])
    responses = [result.get_response() for i, (result, _) in enumerate(got) if i != 50]
    assert [response.id for response in responses] == [str(i) for i in range(100) if i != 50]
    assert responses[0].parameters["triton_final_response"].bool_param is True


def test_an_asynchronous_stream(world: Running) -> None:
    async def talk() -> list[str]:
        async with client_aio.InferenceServerClient(f"127.0.0.1:{world.grpc_port}") as client:

            async def requests() -> AsyncIterator[dict[str, Any]]:
                for i in range(10):
                    yield {"model_name": "simple", "inputs": simple_inputs(), "request_id": str(i)}

            return [result.get_response().id async for result, error in client.stream_infer(requests())]

    assert asyncio.run(talk()) == [str(i) for i in range(10)]


def test_an_idle_stream_does_not_hold_up_a_stop() -> None:
    """What it asked for is answered, and the server does not wait for what it may yet ask."""
    with running(grpc=True) as world:
        world.grace = 600
        client = client_grpc.InferenceServerClient(f"127.0.0.1:{world.grpc_port}")
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        client.async_stream_infer("simple", simple_inputs(), request_id="a")
        result, error = answers.get(timeout=300)
        assert error is None and result.get_response().id == "a"
        began = time.monotonic()
    assert time.monotonic() - began < 300
    client.close()


def test_a_restart_refuses_nobody() -> None:
    """The socket is not the server's own: who is told to connect again waits there for the next one."""

    async def go() -> None:
        sockets = [socket.create_server(("127.0.0.1", 0), backlog=100) for _ in range(2)]
        address = f"127.0.0.1:{sockets[1].getsockname()[1]}"
        again, answers = True, 0

        async def start() -> Front:
            front = Front(EchoEngine(), grpc=[address])
            await front.start([each.dup() for each in sockets])
            return front

        async def ask(client: client_aio.InferenceServerClient) -> None:
            nonlocal answers
            while again:
                await client.infer("simple", simple_inputs())
                answers += 1

        front = await start()
        async with client_aio.InferenceServerClient(address) as client:
            asking = [asyncio.ensure_future(ask(client)) for _ in range(4)]
            for _ in range(3):
                so_far = answers
                while answers < so_far + 20:
                    await asyncio.sleep(0.01)
                await front.stop(5)
                await asyncio.sleep(0.1)
                front = await start()
            again = False
            await asyncio.gather(*asking)
        await front.stop(5)
        for each in sockets:
            each.close()

    asyncio.run(go())


def test_a_queue_that_is_full_says_when_to_come_back(world: Running) -> None:
    world.engine.full = True
    try:
        with grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}") as channel:
            request = service_pb2.ModelInferRequest(model_name="simple")
            with pytest.raises(grpc.RpcError) as error:
                service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    finally:
        world.engine.full = False
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ("grpc-retry-pushback-ms", "2200") in [tuple(pair) for pair in error.value.trailing_metadata()]


def test_bad_messages_are_refused_and_the_server_goes_on(client: Any, world: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for message in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x2a\x02\x0a\x05", b"\x08\x01", b"\x0a\x01\xff"):
            with pytest.raises(grpc.RpcError) as error:
                call(message)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as error:
            call(b"\x3a" + b"\x80\x80\xc0\x01" + b"x" * (3 << 20))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.is_server_live() is True


def test_the_health_service_that_kubernetes_asks(world: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{world.grpc_port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as error:
            check(b"\x0a\x05other")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
