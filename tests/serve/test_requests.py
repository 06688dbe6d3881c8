"""HTTP and gRPC take the same requests, and refuse the same ones in the same words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from torchpar.serve.engine.requests import Request
from torchpar.serve.errors import ServeError
from torchpar.serve.grpc.inference import read_request
from torchpar.serve.limits import MAX_NAMES, MAX_TEXT
from torchpar.serve.protocol import parsing
from torchpar.serve.protocol.parsing import parse_layout

TWO = {"name": "x", "datatype": "FP32", "shape": [1, 2]}


def asked(**changes: Any) -> dict[str, Any]:
    """A request's fields, as both protocols have them; each input's data is two floats."""
    return {"id": "7", "inputs": [TWO], "outputs": [{"name": "y"}], "parameters": {}, **changes}


def with_typed_parameters(fields: dict[str, Any]) -> dict[str, Any]:
    typed = {bool: "bool_param", int: "int64_param", str: "string_param"}
    parameters = fields.get("parameters", {})
    return {**fields, "parameters": {name: {typed[type(value)]: value} for name, value in parameters.items()}}


def over_grpc(fields: dict[str, Any]) -> Request:
    message = with_typed_parameters(fields)
    for name in ("inputs", "outputs"):
        message[name] = [with_typed_parameters(item) for item in fields[name]]
    message["raw_input_contents"] = [memoryview(b"\0\0\x80\x3f\0\0\0\x40") for _ in fields["inputs"]]
    return read_request({"model_name": "m", **message}, 100.0, None)[0]


def over_http(fields: dict[str, Any]) -> Request:
    inputs = [{**item, "data": [1.0, 2.0]} for item in fields["inputs"]]
    layout = parse_layout(json.dumps({**fields, "inputs": inputs}).encode())
    return layout.request("m", "", memoryview(b""), 100.0)


def test_a_request_is_the_same_over_both() -> None:
    fields = asked(parameters={"timeout": 2_000_000, "priority": "3", "mine": True})
    one, other = over_http(fields), over_grpc(fields)
    assert (one.deadline, one.priority, one.parameters, one.outputs) == (102.0, 3, {"mine": True}, ["y"])
    assert bytes(one.inputs.pop().data) == bytes(other.inputs.pop().data)  # type: ignore[arg-type]
    assert one == other


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (asked(id="x" * (MAX_TEXT + 1)), "'id' has 65537 characters; the limit is 65536"),
        (asked(inputs=[TWO] * (MAX_NAMES + 1)), "there are 4097 inputs; the limit is 4096"),
        (asked(inputs=[TWO, TWO]), "two inputs have the same name"),
        (asked(inputs=[{**TWO, "name": "x" * (MAX_TEXT + 1)}]), "an input's name has 65537 characters"),
        (asked(inputs=[{**TWO, "datatype": "FP33"}]), "input 'x': there is no datatype 'FP33'"),
        (asked(inputs=[{**TWO, "shape": [-1]}]), "input 'x': its shape has -1"),
        (asked(inputs=[{**TWO, "shape": [1] * 33}]), "its shape is not an array of at most 32 numbers"),
        (asked(inputs=[{**TWO, "parameters": {"shared_memory_region": "r"}}]), "'x' is in shared memory"),
        (asked(outputs=[{"name": "y"}] * 2), "output 'y' is asked for twice"),
        (asked(outputs=[{"name": str(i)} for i in range(MAX_NAMES + 1)]), "there are 4097 outputs"),
        (asked(outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]), "'y' is in shared memory"),
        (asked(outputs=[{"name": "y", "parameters": {"classification": 0}}]), "output 'y': 'classification' is 0"),
        (asked(parameters={"timeout": -1}), "parameter 'timeout' is not a whole number from 0 on"),
        (asked(parameters={"priority": "high"}), "parameter 'priority' is not a whole number from 0 on"),
        (asked(parameters={"mine": "x" * (MAX_TEXT + 1)}), "a parameter has 65537 characters"),
        (asked(parameters=dict.fromkeys(map(str, range(MAX_NAMES + 1)), 1)), "there are 4097 parameters"),
        (
            asked(inputs=[{**TWO, "parameters": dict.fromkeys(map(str, range(MAX_NAMES + 1)), 1)}]),
            "there are 4097 parameters",
        ),
    ],
)
def test_what_one_refuses_the_other_does_too(fields: dict[str, Any], why: str) -> None:
    said = []
    for make in (over_http, over_grpc):
        with pytest.raises(ServeError) as refused:
            make(fields)
        said.append((refused.value.status, refused.value.message))
    assert said[0] == said[1] and said[0][0] == 400
    assert why in said[0][1]


NUMBERS = st.one_of(
    st.floats().map(json.dumps),
    st.integers(-(1 << 70), 1 << 70).map(str),
    st.sampled_from(["1e400", "-1e400", "4e-324", "1E5", "-0", "-0.0", "1.", ".5", "01", "0.1e-1", "9007199254740993",
                     "18446744073709551615", "9223372036854775808.0", "1" * 400, "0." + "3" * 400, "null", '"1"']),
)  # fmt: skip
NAMES = st.sampled_from(['"x"', '"\\ud800"', '"\\ud83d\\ude00"', '"\ufffe"', '"\0"', "'x'", '"\\u00e9"'])
CODINGS = st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])


def outcome_of(text: bytes) -> Any:
    """The request that a text is, as it can be compared: NaN is not itself."""
    try:
        layout = parse_layout(text)
        return repr((layout, layout.request("m", "", memoryview(b""), 0.0)))
    except ServeError as error:
        return error.status, error.message


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "BF16", "INT8", "INT64", "UINT64", "BOOL", "BYTES"])
def test_a_request_is_the_same_however_its_json_is_parsed(datatype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With orjson, where it is installed, and without."""
    fast = pytest.importorskip("orjson")

    @settings(max_examples=150)
    @given(st.lists(NUMBERS, max_size=4), NAMES, st.sampled_from(["", ",", "]", "/**/"]), NUMBERS, CODINGS)
    def compare(numbers: list[str], name: str, more: str, parameter: str, coding: str) -> None:
        tensor = f'"name": {name}, "datatype": "{datatype}", "shape": [{len(numbers)}], "data": [{",".join(numbers)}]'
        text = f'{{"inputs": [{{{tensor}}}]{more}, "parameters": {{"mine": {parameter}}}}}'.encode(coding, "replace")
        monkeypatch.setattr(parsing, "fast_loads", fast.loads)
        one = outcome_of(text)
        monkeypatch.setattr(parsing, "fast_loads", None)
        assert one == outcome_of(text)

    compare()


@pytest.mark.parametrize("parser", ["orjson", None])
def test_every_float_has_its_nearest_value(parser: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "fast_loads", parser and pytest.importorskip(parser).loads)

    @settings(max_examples=500)
    @given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 17))
    def compare(value: float, digits: int) -> None:
        text = f"{value:.{digits}e}"
        assume(math.isfinite(float(text)))
        data = f'{{"inputs": [{{"name": "x", "datatype": "FP64", "shape": [1], "data": [{text}]}}]}}'.encode()
        (found,) = memoryview(parse_layout(data).request("m", "", memoryview(b""), 0.0).inputs[0].data).cast("d")
        assert found == float(text) and math.copysign(1, found) == math.copysign(1, value)

    compare()
