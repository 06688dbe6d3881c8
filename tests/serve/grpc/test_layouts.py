"""Messages that are read by what they have in common are read as any other reads them."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from torchpar.serve.engine.requests import Response
from torchpar.serve.errors import ServeError
from torchpar.serve.grpc import layouts
from torchpar.serve.grpc.inference import read_request, response_fields
from torchpar.serve.grpc.layouts import Layouts, cut
from torchpar.serve.grpc.messages import INFER_REQUEST, INFER_RESPONSE
from torchpar.serve.grpc.wire import WireError
from torchpar.serve.tensors import Tensor

TEXT = st.sampled_from(["", "a", "é", "x" * 200])
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from("xyz"), "datatype": st.sampled_from(["INT8", "INT8", "INT8", "FP32", "BYTES", "FP33"]),
     "shape": st.lists(st.sampled_from([1, 2, 3, 2, 1, -1]), max_size=2)},
    optional={"parameters": st.just({"p": {"int64_param": 3}})},
)  # fmt: skip
OTHERS = st.fixed_dictionaries(
    {},
    optional={
        "model_name": TEXT, "model_version": TEXT, "id": TEXT,
        "outputs": st.lists(st.fixed_dictionaries({"name": TEXT}), max_size=2),
        "parameters": st.sampled_from([{"timeout": {"int64_param": 5}}, {"priority": {"string_param": "x"}}]),
    },
)  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """A message; most are as they should be."""
    inputs = draw(st.lists(TENSOR, max_size=2))
    raw = [b"r" * abs(math.prod(item["shape"])) for item in inputs]
    mistake = draw(st.sampled_from(["", "", "", "size", "number", "contents"]))
    if raw and mistake == "size":
        raw[-1] += b"x"
    elif mistake == "number":
        raw.append(b"r")
    elif inputs and mistake == "contents":
        inputs[0] = {**inputs[0], "contents": {"int_contents": [1]}}
    return {**draw(OTHERS), "inputs": inputs, "raw_input_contents": raw}


def outcome(read: Any) -> Any:
    """What is read, or why not."""
    try:
        return read()
    except ServeError as error:
        return error.status


@settings(max_examples=400, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=4), st.randoms())
def test_a_known_form_is_read_as_any_other(several: list[dict[str, Any]], chance: Any) -> None:
    """Whatever the order of the fields; the second of a form too, with another id and other tensors."""
    known = Layouts()
    for fields in several:
        parts = [INFER_REQUEST.encode({name: value}) for name, value in fields.items()]
        chance.shuffle(parts)
        for data in (INFER_REQUEST.encode(fields), b"".join(parts)):
            wanted = outcome(lambda data=data: read_request(INFER_REQUEST.decode(data), 7.0, 3.0))
            found = outcome(lambda data=data: known.read(data, 7.0, 3.0))
            assert found is None or found == wanted


def test_what_clients_write_is_known() -> None:
    asked = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"1234" * 100])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 100])
    known = Layouts()
    known.read(asked.SerializeToString(), 0.0, None)
    with mock.patch.object(layouts, "read_layout", side_effect=AssertionError):
        for number in range(3):
            asked.id = "" if number == 0 else str(number) * 99
            asked.raw_input_contents[0] = b"abcd" * 100
            found = known.read(asked.SerializeToString(), 5.0, 2.0)
            assert found is not None
            request = found[0]
            assert (request.model, request.id, request.deadline) == ("m", asked.id, 7.0)
            assert bytes(request.inputs[0].data) == b"abcd" * 100  # type: ignore[arg-type]


@pytest.mark.parametrize("again", [{"id": ""}, {"id": "b"}, {"model_name": "n"}, {"outputs": [{"name": "y"}]}])
@pytest.mark.parametrize("last", [False, True])
def test_fields_that_are_there_again_count(again: dict[str, Any], last: bool) -> None:
    """Of two, the second counts, protobuf says; lists go on."""
    fields = {"model_name": "m", "id": "a", "inputs": [{"name": "x", "datatype": "INT8", "shape": [1]}]}
    raw = INFER_REQUEST.encode({"raw_input_contents": [b"1"]})
    more = INFER_REQUEST.encode(again)
    data = INFER_REQUEST.encode(fields) + (raw + more if last else more + raw)
    found = Layouts().read(data, 0.0, None)
    assert found is None or found == read_request(INFER_REQUEST.decode(data), 0.0, None)


@pytest.mark.parametrize(
    "change",
    [
        {"raw_input_contents": [b"1234"] * (layouts.MOST_RAW + 1)},
        {"raw_input_contents": []},
        {"model_name": "m" * (layouts.KEPT_SIZE + 1)},
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}]},
    ],
)
def test_other_forms_are_left_to_others(change: dict[str, Any]) -> None:
    fields = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}], "raw_input_contents": [b"1234"]}
    assert Layouts().read(INFER_REQUEST.encode(fields), 0.0, None) is not None
    assert Layouts().read(INFER_REQUEST.encode({**fields, **change}), 0.0, None) is None


def test_no_more_forms_are_kept_than_may_be() -> None:
    known = Layouts()
    for number in range(layouts.KEPT + 10):
        fields = {"model_name": str(number), "inputs": [{"name": "x", "datatype": "INT8", "shape": [0]}]}
        known.read(INFER_REQUEST.encode({**fields, "raw_input_contents": [b""]}), 0.0, None)
        known.write(Response(str(number), "1", "", [Tensor("y", "INT8", (1,), b"1")]))
        assert max(len(known._kept), len(known._heads)) <= layouts.KEPT
    assert known._kept and known._heads


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([b"\x0a", b"\x1a", b"\x2a", b"\x3a", b"\0", b"\x01", b"\x05", b"\x80", b"\xff"])))
def test_any_bytes_are_cut_as_they_are_decoded(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    parts = cut(data)
    if parts is not None:
        try:
            whole = INFER_REQUEST.decode(data)
        except WireError:
            return  # of a field that is within the description
        assert list(whole["raw_input_contents"]) == list(parts.raw)
        assert bytes(parts.id) == whole.get("id", "").encode()


@pytest.mark.parametrize("shapes", [[(2,)], [(1, 3), (0,)]])
@pytest.mark.parametrize("id_", ["", "é" * 100])
def test_an_answer_is_what_the_fields_say(shapes: list[tuple[int, ...]], id_: str) -> None:
    known = Layouts()
    for byte in (b"a", b"b"):
        outputs = [Tensor(f"y{i}", "INT8", shape, byte * sum(shape)) for i, shape in enumerate(shapes)]
        response = Response("m", "3", id_, outputs)
        pieces = known.write(response)
        assert pieces is not None
        ours, theirs = (
            service_pb2.ModelInferResponse.FromString(data)
            for data in (b"".join(pieces), INFER_RESPONSE.encode(response_fields(response, {})))
        )
        assert ours == theirs and ours.raw_output_contents[0] == byte * sum(shapes[0])


def test_answers_that_differ_each_time_are_left_to_others() -> None:
    known = Layouts()
    assert known.write(Response("m", "1", "", [Tensor("y", "BYTES", (1,), [b"a"])])) is None
    assert known.write(Response("m", "1", "", [Tensor("y", "INT8", (1,), b"a")], {"p": 1})) is None
