"""Every call of tritonclient.http and tritonclient.http.aio works against the server, unmodified."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as http
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.serve.blocking import Blocking
from tests.serve.running import Running, running

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), dtype=np.int32)


@pytest.fixture(scope="module")
def world() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture(params=["http", "http.aio"])
def client(request: pytest.FixtureRequest, world: Running) -> Iterator[Any]:
    made = http.InferenceServerClient(world.address) if request.param == "http" else Blocking(aio, world.address)
    yield made
    made.close()


def eventually(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(500):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it has not come to pass")


def simple_inputs(*, binary: bool = True) -> list[Any]:
    inputs = []
    for name, value in (("INPUT0", A), ("INPUT1", B)):
        inputs.append(http.InferInput(name, list(value.shape), "INT32"))
        inputs[-1].set_data_from_numpy(value, binary_data=binary)
    return inputs


def identity(client: Any, value: np.ndarray, datatype: str, *, binary: bool, binary_output: bool) -> Any:
    wanted = http.InferInput("x", list(value.shape), datatype)
    wanted.set_data_from_numpy(value, binary_data=binary)
    outputs = [http.InferRequestedOutput("x", binary_data=binary_output)]
    return client.infer(f"identity_{datatype.lower()}", [wanted], outputs=outputs).as_numpy("x")


def test_health(client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("simple") is True
    assert client.is_model_ready("simple", "1") is True
    assert client.is_model_ready("simple", "2") is False
    assert client.is_model_ready("nothing") is False


def test_metadata_and_config(client: Any) -> None:
    server = client.get_server_metadata()
    assert server["name"] == "torchpar" and "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("simple")
    assert model == client.get_model_metadata("simple", "1")
    assert model["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]}
    assert client.get_model_config("simple")["max_batch_size"] == 8
    with pytest.raises(InferenceServerException, match="not found") as error:
        client.get_model_metadata("nothing")
    assert error.value.status() == "404"


def test_a_name_with_odd_characters_is_found(client: Any) -> None:
    assert client.get_model_metadata("odd name é")["name"] == "odd name é"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_infer_with_every_mix_of_forms(client: Any, binary: bool, binary_output: bool | None) -> None:
    """None: no outputs named, the client's default."""
    outputs = None
    if binary_output is not None:
        outputs = [http.InferRequestedOutput(name, binary_data=binary_output) for name in ("OUTPUT0", "OUTPUT1")]
    result = client.infer("simple", simple_inputs(binary=binary), outputs=outputs, request_id="seven")
    assert (result.as_numpy("OUTPUT0") == A + B).all() and (result.as_numpy("OUTPUT1") == A - B).all()
    response = result.get_response()
    response = response if isinstance(response, dict) else json.loads(response)
    assert (response["id"], response["model_name"], response["model_version"]) == ("seven", "simple", "1")


def test_only_the_outputs_that_are_asked_for_come(client: Any) -> None:
    outputs = [http.InferRequestedOutput("OUTPUT1", binary_data=True)]
    for _ in range(2):
        result = client.infer("simple", simple_inputs(), "1", outputs=outputs)
        assert result.as_numpy("OUTPUT0") is None
        assert (result.as_numpy("OUTPUT1") == A - B).all()


@pytest.mark.parametrize("request_", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response", [None, "gzip", "deflate"])
def test_compression(client: Any, request_: str | None, response: str | None) -> None:
    value = np.zeros((8, 1000), dtype=np.float32)
    wanted = http.InferInput("x", list(value.shape), "FP32")
    wanted.set_data_from_numpy(value)
    result = client.infer(
        "identity_fp32",
        [wanted],
        request_compression_algorithm=request_,
        response_compression_algorithm=response,
    )
    assert (result.as_numpy("x") == value).all()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        np.array([[True, False]]),
        *[np.array([[np.iinfo(t).min, np.iinfo(t).max]], dtype=t) for t in "u1 u2 u4 u8 i1 i2 i4 i8".split()],
        np.array([[1.5, -0.1]], dtype=np.float32),
        np.array([[1e300, -0.1]]),
        np.zeros((0, 3), dtype=np.float32),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_every_datatype_comes_back_as_it_went(client: Any, value: np.ndarray, binary: bool) -> None:
    datatype = np_to_triton_dtype(value.dtype)
    got = identity(client, value, datatype, binary=binary, binary_output=binary)
    assert got.dtype == value.dtype and got.shape == value.shape and (got == value).all()


def test_half_precision_and_bytes(client: Any) -> None:
    half = np.array([[1.5, 65504.0]], dtype=np.float16)
    assert (identity(client, half, "FP16", binary=True, binary_output=True) == half).all()
    brain = np.array([[1.5, -3.0]], dtype=ml_dtypes.bfloat16)
    assert (identity(client, brain, "BF16", binary=True, binary_output=True).astype(np.float32) == [[1.5, -3.0]]).all()
    words = np.array([[b"", "äöü\n".encode()]], dtype=np.object_)
    assert (identity(client, words, "BYTES", binary=True, binary_output=True) == words).all()
    assert identity(client, words, "BYTES", binary=False, binary_output=False).tolist() == [["", "äöü\n"]]
    raw = np.array([[b"\xff\x00"]], dtype=np.object_)
    assert (identity(client, raw, "BYTES", binary=True, binary_output=True) == raw).all()
    with pytest.raises(InferenceServerException, match="ask for binary data"):
        identity(client, raw, "BYTES", binary=True, binary_output=False)


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client: Any, binary: bool) -> None:
    value = np.array([[0.25, 4.0, 1.0], [9.0, 8.0, 7.0]], dtype=np.float32)
    wanted = http.InferInput("x", [2, 3], "FP32")
    wanted.set_data_from_numpy(value)
    outputs = [http.InferRequestedOutput("x", binary_data=binary, class_count=2)]
    got = client.infer("identity_fp32", [wanted], outputs=outputs).as_numpy("x")
    text = [[item.decode() if isinstance(item, bytes) else item for item in row] for row in got.tolist()]
    assert text == [["4.000000:1", "1.000000:2"], ["9.000000:0", "8.000000:1"]]


def test_parameters_reach_the_engine(client: Any, world: Running) -> None:
    client.infer(
        "simple",
        simple_inputs(),
        sequence_id=7,
        sequence_start=True,
        sequence_end=True,
        priority=3,
        timeout=60_000_000,
        parameters={"mine": "yes"},
        headers={"X-Other": "1"},
        query_params={"q": 1},
    )
    request = world.engine.requests[-1]
    assert request.priority == 3 and request.deadline is not None
    assert request.parameters == {"sequence_id": 7, "sequence_start": True, "sequence_end": True, "mine": "yes"}


def test_repository(client: Any) -> None:
    index = {entry["name"]: entry for entry in client.get_model_repository_index()}
    assert index["simple"] == {"name": "simple", "version": "1", "state": "READY", "reason": ""}
    client.unload_model("simple", unload_dependents=True)
    assert client.is_model_ready("simple") is False
    with pytest.raises(InferenceServerException, match="not loaded"):
        client.infer("simple", simple_inputs())
    client.load_model("simple")
    assert client.is_model_ready("simple") is True
    with pytest.raises(InferenceServerException, match="'config' cannot be overridden"):
        client.load_model("simple", config="{}")
    with pytest.raises(InferenceServerException, match="cannot be overridden"):
        client.load_model("simple", config="{}", files={"file:1/model.pt": b"x"})
    with pytest.raises(InferenceServerException, match="not found"):
        client.load_model("nothing")


def test_statistics(client: Any) -> None:
    client.infer("simple", simple_inputs())
    one = client.get_inference_statistics("simple")["model_stats"]
    assert [stats["name"] for stats in one] == ["simple"]
    assert one[0]["inference_stats"]["success"]["count"] >= 1
    assert len(client.get_inference_statistics()["model_stats"]) > 1
    assert client.get_inference_statistics("simple", "1")["model_stats"][0]["version"] == "1"


def test_log_settings(client: Any, world: Running) -> None:
    assert client.get_log_settings()["log_verbose_level"] == 0
    assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    client.is_server_live()
    # The line is written after the answer.
    eventually(lambda: any(line.startswith("GET /v2/health/live 200") for line in world.lines))
    client.update_log_settings({"log_verbose_level": 0})
    with pytest.raises(InferenceServerException, match="journal"):
        client.update_log_settings({"log_file": "/etc/passwd"})


def test_trace_settings(client: Any, world: Running) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    client.update_trace_settings("simple", {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "1"})
    world.lines.clear()
    client.infer("simple", simple_inputs())
    client.infer("simple", simple_inputs())
    traced = [line for line in world.lines if line.startswith("trace: ")]
    assert len(traced) == 1 and json.loads(traced[0][7:])["model"] == "simple"
    assert client.get_trace_settings("simple")["trace_count"] == "0"
    cleared = {"trace_level": None, "trace_rate": None, "trace_count": None}
    assert client.update_trace_settings("simple", cleared)["trace_level"] == ["OFF"]
    client.update_trace_settings(settings={"trace_rate": "5"})
    assert client.get_trace_settings("simple")["trace_rate"] == "5"
    client.update_trace_settings(settings={"trace_rate": None})
    with pytest.raises(InferenceServerException, match="trace_level"):
        client.update_trace_settings(settings={"trace_level": ["NONSENSE"]})


def test_shared_memory_has_a_clear_answer(client: Any) -> None:
    assert client.get_system_shared_memory_status() == []
    assert client.get_cuda_shared_memory_status() == []
    with pytest.raises(InferenceServerException, match="unable to find system shared memory region: 'r'"):
        client.get_system_shared_memory_status("r")
    with pytest.raises(InferenceServerException, match="maps no memory of its clients"):
        client.register_system_shared_memory("r", "/r", 64)
    with pytest.raises(InferenceServerException, match="maps no memory of its clients"):
        client.register_cuda_shared_memory("r", b"handle", 0, 64)
    client.unregister_system_shared_memory("r")
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    shared = http.InferInput("INPUT0", [1, 16], "INT32")
    shared.set_shared_memory("r", 64)
    with pytest.raises(InferenceServerException, match="send the tensor itself"):
        client.infer("simple", [shared, simple_inputs()[1]])


def test_async_infer(world: Running) -> None:
    client = http.InferenceServerClient(world.address, concurrency=4)
    waiting = [client.async_infer("simple", simple_inputs()) for _ in range(20)]
    assert all((each.get_result().as_numpy("OUTPUT0") == A + B).all() for each in waiting)
    client.close()


def test_request_bodies_made_by_the_client_library(world: Running) -> None:
    body, size = http.InferenceServerClient.generate_request_body(simple_inputs())
    request = urllib.request.Request(
        f"http://{world.address}/v2/models/simple/infer", body, {"Inference-Header-Content-Length": str(size)}
    )
    with urllib.request.urlopen(request) as response:
        result = http.InferenceServerClient.parse_response_body(
            response.read(), header_length=int(response.headers["Inference-Header-Content-Length"])
        )
    assert (result.as_numpy("OUTPUT0") == A + B).all()


def test_errors_are_the_servers_words(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="unexpected inference input 'y'"):
        wrong = http.InferInput("y", [1, 16], "INT32")
        wrong.set_data_from_numpy(A)
        client.infer("simple", [wrong, simple_inputs()[1]])
    with pytest.raises(InferenceServerException, match="unexpected inference output"):
        client.infer("simple", simple_inputs(), outputs=[http.InferRequestedOutput("nothing")])
    with pytest.raises(InferenceServerException, match="not found"):
        client.infer("nothing", simple_inputs())
