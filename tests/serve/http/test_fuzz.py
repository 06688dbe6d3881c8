"""Whatever comes, it is answered with what the protocol has for mistakes, and the service goes on."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.http.conversation import World, converse
from tests.serve.running import Running, running
from torchpar.serve.errors import ServeError
from torchpar.serve.limits import Limits
from torchpar.serve.protocol.elements import data_from_values, nested, unpack_bytes, values_from_data
from torchpar.serve.protocol.parsing import parse_layout
from torchpar.serve.tensors import SIZES, Tensor

LIMITS = Limits(body=1 << 20, json=1 << 18)
INFER = "/v2/models/identity_fp32/infer"


@pytest.fixture(scope="module")
def world() -> Iterator[Running]:
    with running(limits=LIMITS) as started:
        yield started


def ask(world: Running, method: str, path: str, body: bytes = b"", **fields: str) -> tuple[int, Any]:
    """One request on a connection of its own; the answer must be JSON."""
    connection = HTTPConnection("127.0.0.1", world.port, timeout=300)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in fields.items()})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def goes_on(world: Running) -> None:
    status, answer = ask(world, "POST", "/predict/identity_fp32", b"[1, 2]")
    assert (status, answer) == (200, {"outputs": {"x": [1.0, 2.0]}})


def request(**changes: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}
    return json.dumps({"inputs": [{k: v for k, v in tensor.items() if v is not ...}]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "'inputs' is not an array"),
        (b'{"inputs": [7]}', "not an object with a name"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"inputs":' * 20_000, "nested too deeply"),
        (request(data=[[[[[[1, 2]]]]]]), None),
        (request(shape=[2, 2]), "has 2 elements; its shape needs 4"),
        (request(shape=[2, 1], data=[[1, 2]]), "nested as [1, 2], its shape is [2, 1]"),
        (request(shape=[-1, 2]), "its shape has -1"),
        (request(shape=[1.0, 2]), "its shape has 1.0"),
        (request(shape=[True, 2]), "its shape has True"),
        (request(shape="ab"), "its shape is not an array"),
        (request(shape=[1 << 62, 1 << 62]), "its shape has"),
        (request(shape=[1 << 39, 1 << 39], data=[]), "too large"),
        (request(shape=[0, 1 << 39, 1 << 39], data=[]), "too large"),
        (request(shape=[1] * 50_000), "at most 32 numbers"),
        (request(datatype="FP33"), "there is no datatype 'FP33'"),
        (request(datatype=["FP32"]), "there is no datatype"),
        (request(data=[1, "2"]), "values that are no FP32"),
        (request(data=[1, None]), "values that are no FP32"),
        (request(data=[1, 1e39]), "values that are no FP32"),
        (request(data=[-(10**39), 1]), "values that are no FP32"),
        (request(data=[[1], 2]), "not of one length"),
        (request(data="12"), "neither an array"),
        (request(data=...), "neither an array"),
        (request(parameters={"binary_data_size": 8}), "both data and a"),
        (request(parameters={"binary_data_size": 1 << 60}, data=...), "its shape and datatype need 8"),
        (request(parameters={"binary_data_size": 8}, data=...), "the body ends before its 8 bytes"),
        (request(parameters=[]), "'parameters' is not an object"),
        (b'{"inputs": [' + b",".join([request()[12:-2]] * 2) + b"]}", "the same name"),
        (b'{"id": 7, "inputs": []}', "'id' is not a string"),
        (b'{"parameters": {"timeout": -1}, "inputs": []}', "parameter 'timeout'"),
        (b'{"parameters": {"binary_data_output": "yes"}, "inputs": []}', "'binary_data_output'"),
        (request()[:-1] + b', "outputs": [{"name": "x"}, {"name": "x"}]}', "asked for twice"),
        (request()[:-1] + b', "outputs": [{"name": "x", "parameters": {"classification": 0}}]}', "'classification'"),
        (request()[:-1] + b', "parameters": {"mine": {"deep": 1}}}', "parameter 'mine'"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [' + b"9" * 50_000 + b"]}]}", None),
        (b'{"a": "' + b"x" * 300_000 + b'"}', "bytes of JSON; the limit is 262144"),
    ],
)
def test_a_malformed_request_is_a_400_that_says_why(world: Running, body: bytes, message: str | None) -> None:
    status, answer = ask(world, "POST", INFER, body)
    if message is None:
        assert status in (200, 400)
    else:
        assert status == (413 if "limit" in message else 400)
        assert message in answer["error"] and len(answer["error"]) < 300
    goes_on(world)


@pytest.mark.parametrize("length", ["-1", "x", "9999999999999999", "10000", "", "1e3", "+5"])
def test_a_json_length_that_cannot_be_is_refused(world: Running, length: str) -> None:
    status, answer = ask(world, "POST", INFER, request(), Inference_Header_Content_Length=length)
    assert status == 400 and "Inference-Header-Content-Length" in answer["error"]


def test_bytes_that_belong_to_no_input_are_refused(world: Running) -> None:
    header = request(parameters={"binary_data_size": 8}, data=...)
    for rest in (7, 9):
        status, answer = ask(
            world, "POST", INFER, header + b"x" * rest, Inference_Header_Content_Length=str(len(header))
        )
        assert status == 400 and "body" in answer["error"]


def test_a_raw_body_is_the_only_input(world: Running) -> None:
    connection = HTTPConnection("127.0.0.1", world.port, timeout=300)
    connection.request("POST", INFER, b"\0" * 8, {"Inference-Header-Content-Length": "0"})
    reply = connection.getresponse()
    size = int(reply.headers["Inference-Header-Content-Length"])
    body = reply.read()
    assert json.loads(body[:size])["outputs"][0]["shape"] == [1, 2] and body[size:] == b"\0" * 8
    connection.close()
    assert ask(world, "POST", INFER, b"\0" * 7, Inference_Header_Content_Length="0")[0] == 400
    assert ask(world, "POST", "/v2/models/simple/infer", b"\0" * 64, Inference_Header_Content_Length="0")[0] == 400


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", gzip.compress(b" " * (2 << 20)), 413),
        ("deflate", zlib.compress(b" " * (2 << 20)), 413),
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(request())[:-9], 400),
        ("gzip", gzip.compress(request()) + b"more", 400),
        ("deflate", b"", 400),
        ("br", b"x", 415),
        ("gzip, gzip", b"x", 415),
        ("gzip", gzip.compress(request()), 200),
        ("deflate", zlib.compress(request()), 200),
        ("deflate", zlib.compress(request())[2:-4], 200),
        ("identity", request(), 200),
    ],
    ids=[
        "gzip bomb", "deflate bomb", "no gzip", "half a gzip", "more than a gzip", "no deflate", "br", "two codings",
        "gzip", "deflate", "raw deflate", "none",
    ],  # fmt: skip
)
def test_a_compressed_body_is_bounded_and_checked(world: Running, coding: str, body: bytes, status: int) -> None:
    assert ask(world, "POST", INFER, body, Content_Encoding=coding)[0] == status
    goes_on(world)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/simple/versions/x", 404),
        ("GET", "/v2/models/simple/versions/99999999999999999999", 404),
        ("GET", "/v2/models/simple/versions/7", 404),
        ("GET", "/v2/models/..%2f..%2fetc/passwd", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/repository/models/simple/load", 405),
        ("GET", "http://elsewhere/v2", 200),
        ("GET", "/v2/?a=b&&c=%ff", 200),
    ],
)
def test_paths_and_methods_that_are_not_there(world: Running, method: str, path: str, status: int) -> None:
    assert ask(world, method, path)[0] == status


@pytest.mark.parametrize("field", ["Origin", "X_Forwarded_For", "Forwarded"])
@pytest.mark.parametrize(
    "path", ["/v2/repository/models/simple/unload", "/v2/logging", "/v2/trace/setting"]
)
def test_web_pages_and_clients_of_proxies_change_nothing(world: Running, field: str, path: str) -> None:
    """A page on the web can make a browser on this host send requests; a proxy makes everybody look local."""
    status, answer = ask(world, "POST", path, b"{}", **{field: "http://elsewhere"})
    assert (status, answer) == (403, {"error": "models and settings can be changed from this host only"})
    assert world.engine.unloaded == set()


def test_a_full_queue_says_when_to_come_back() -> None:
    with running() as world:
        world.engine.full = True
        connection = HTTPConnection("127.0.0.1", world.port, timeout=300)
        connection.request("POST", INFER, request())
        reply = connection.getresponse()
        assert (reply.status, reply.headers["Retry-After"]) == (503, "3")
        assert json.loads(reply.read()) == {"error": "the queue is full"}
        connection.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def often(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is right most of the time, and anything at others."""
    return st.one_of(strategy, strategy, strategy, JSON)


REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "id": often(st.just("7")),
        "parameters": often(
            st.dictionaries(st.sampled_from(["timeout", "priority", "binary_data_output", "x"]), JSON, max_size=2)
        ),
        "inputs": often(
            st.lists(
                often(
                    st.fixed_dictionaries(
                        {},
                        optional={
                            "name": often(st.sampled_from(["x", "y"])),
                            "datatype": often(st.sampled_from(list(SIZES))),
                            "shape": often(st.lists(often(st.integers(-1, 4)), max_size=3)),
                            "data": often(st.lists(JSON, max_size=5)),
                            "parameters": often(
                                st.fixed_dictionaries({"binary_data_size": often(st.integers(-1, 20))})
                            ),
                        },
                    )
                ),
                max_size=2,
            )
        ),
        "outputs": often(st.lists(often(st.fixed_dictionaries({"name": JSON, "parameters": JSON})), max_size=2)),
    },
)


@settings(max_examples=700, deadline=None)
@given(REQUESTS, st.binary(max_size=40))
def test_any_json_is_a_request_or_a_400(value: Any, rest: bytes) -> None:
    try:
        layout = parse_layout(json.dumps(value).encode())
        layout.request("m", "", memoryview(rest), 0.0)
    except ServeError as error:
        assert error.status == 400


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(value=REQUESTS, rest=st.binary(max_size=20))
def test_any_json_over_http_is_an_answer(world: Running, value: Any, rest: bytes) -> None:
    text = json.dumps(value).encode()
    status, _ = ask(world, "POST", INFER, text + rest, Inference_Header_Content_Length=str(len(text)))
    assert status in (200, 400)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(value=JSON)
def test_any_json_to_predict_is_an_answer(world: Running, value: Any) -> None:
    for model in ("identity_fp32", "text"):
        assert ask(world, "POST", f"/predict/{model}", json.dumps(value).encode())[0] in (200, 400)


FRAGMENTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"\n", b"\r", b" ", b":", b"\0",
        b"\xff",
        b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\nabcde\r\n",
        b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: x\r\n",
        b"Expect: 100-continue\r\n", b"abcde", b"HTTP/9.9", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"a" * 3000,
    ]
)  # fmt: skip


def test_any_bytes_leave_the_server_well() -> None:
    """Every connection is answered or closed, none is left hanging, and the next client is served."""
    limits = Limits(header=2048, header_seconds=0.1, body_seconds=0.1, idle_seconds=0.1, linger_seconds=0.1)
    streams: list[list[bytes]] = []

    @settings(max_examples=150, deadline=None)
    @given(st.lists(FRAGMENTS | st.binary(max_size=10), max_size=12))
    def collect(stream: list[bytes]) -> None:
        streams.append(stream)

    collect()

    async def story(world: World) -> None:
        async def one(stream: list[bytes]) -> None:
            client = await world.connect()
            try:
                for piece in stream:
                    client.send(piece)
                    await asyncio.sleep(0)
                answer = await asyncio.wait_for(client.reader.read(), 5)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            except ConnectionError:
                pass
            finally:
                client.writer.close()

        for start in range(0, len(streams), 50):
            await asyncio.gather(*map(one, streams[start : start + 50]))
        client = await world.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer())[0] == 200

    converse(story, limits)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([name for name in SIZES if name != "BYTES"]), st.binary(max_size=24))
def test_values_and_data_are_the_same_thing(datatype: str, data: bytes) -> None:
    size = SIZES[datatype] or 1
    data = data[: len(data) // size * size]
    if datatype == "BOOL":
        data = bytes(byte & 1 for byte in data)
    values = values_from_data(Tensor("x", datatype, (), memoryview(data)))
    back = data_from_values("x", datatype, [len(values)], values)
    if not any(value != value for value in values):
        assert bytes(back) == data  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 1 << 40))
def test_any_bytes_are_elements_or_a_400(data: bytes, count: int) -> None:
    try:
        elements = unpack_bytes("x", count, memoryview(data))
    except ServeError:
        return
    assert len(elements) == count and sum(map(len, elements)) + 4 * count == len(data)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_nested_values_are_nested_as_their_shape_says(shape: list[int], other: list[int]) -> None:
    """Or flat; two sizes that changed places leave the count right, and the order wrong."""
    numbers = list(range(math.prod(shape)))
    value = nested(numbers, tuple(shape))
    data = data_from_values("x", "INT64", shape, numbers)
    assert data_from_values("x", "INT64", shape, value) == data
    if value in (numbers, nested(list(range(math.prod(other))), tuple(other))):
        return
    with pytest.raises(ServeError) as refused:
        data_from_values("x", "INT64", other, value)
    assert refused.value.status == 400


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_an_answer_is_json_that_every_parser_takes(world: Running, datatype: str) -> None:
    """Python's own, which calls parse_constant for bare words, is more patient than others."""

    def ask_for(values: list[float], *, binary: bool = False) -> tuple[int, Any]:
        tensor = {"name": "x", "datatype": datatype, "shape": [1, len(values)], "data": values}
        body = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
        connection = HTTPConnection("127.0.0.1", world.port, timeout=300)
        connection.request("POST", f"/v2/models/identity_{datatype.lower()}/infer", body)
        reply = connection.getresponse()
        text = reply.read()[: int(reply.headers.get("Inference-Header-Content-Length", 1 << 20))]
        connection.close()
        return reply.status, json.loads(text, parse_constant=pytest.fail)

    status, answer = ask_for([1.5, math.nan, -2.0])
    assert (status, answer["outputs"][0]["data"]) == (200, [1.5, None, -2.0])
    for infinity in (math.inf, -math.inf):
        says = "output 'x' has infinities: JSON cannot hold them; ask for binary data"
        assert ask_for([1.5, infinity, math.nan]) == (400, {"error": says})
        assert ask_for([1.5, infinity, math.nan], binary=True)[0] == 200


@pytest.mark.parametrize(("datatype", "number"), [
    ("FP64", "1e400"), ("FP64", "-1E+309"), ("FP64", "9" * 400 + ".0"), ("FP64", "9" * 400),
    ("FP32", "1e400"), ("FP32", "1e39"), ("BF16", "3.4e38"), ("BF16", "-1e39"), ("FP16", "65520"), ("FP16", "1e0400"),
])  # fmt: skip
def test_a_number_that_its_datatype_does_not_reach_is_no_infinity(world: Running, datatype: str, number: str) -> None:
    """It would be the answer to another question."""
    connection = HTTPConnection("127.0.0.1", world.port, timeout=300)
    tensor = f'{{"name": "x", "datatype": "{datatype}", "shape": [1, 2], "data": [1.5, %s]}}'
    statuses = []
    for value in (number, "1e0010" if datatype in ("FP32", "FP64") else "7e0", "Infinity"):
        body = f'{{"inputs": [{tensor % value}], "parameters": {{"binary_data_output": true}}}}'
        connection.request("POST", f"/v2/models/identity_{datatype.lower()}/infer", body)
        reply = connection.getresponse()
        reply.read()
        statuses.append(reply.status)
    connection.close()
    assert statuses == [400, 200, 200]


def test_flat_values_are_nested_by_their_shape() -> None:
    assert nested([1, 2, 3, 4], (2, 2)) == [[1, 2], [3, 4]]
    assert nested([1], ()) == 1
    assert nested([], (2, 0)) == [[], []]
    assert nested([], (0, 2)) == []
