"""Plain JSON in and out, and the page for people."""

from __future__ import annotations

import json
import math
import struct
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.running import Running, running
from torchpar.serve.errors import ServeError
from torchpar.serve.http.predict import read_inputs
from torchpar.serve.tensors import TensorSpec


@pytest.fixture(scope="module")
def world() -> Iterator[Running]:
    with running() as started:
        yield started


def ask(world: Running, path: str, body: bytes | None = None, **fields: str) -> tuple[int, str]:
    names = {name.replace("_", "-"): value for name, value in fields.items()}
    request = urllib.request.Request(f"http://{world.address}{path}", body, names)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def predict(world: Running, model: str, value: Any) -> Any:
    status, text = ask(world, f"/predict/{model}", json.dumps(value).encode())
    answer = json.loads(text)
    return answer["outputs"] if status == 200 else answer["error"]


def test_the_only_input_needs_no_name_and_one_row_no_brackets(world: Running) -> None:
    assert predict(world, "identity_fp32", [[1, 2.5]]) == {"x": [[1.0, 2.5]]}
    assert predict(world, "identity_fp32", [1, 2.5]) == {"x": [1.0, 2.5]}
    assert predict(world, "identity_fp32", {"x": [[1, 2.5], [3, 4]]}) == {"x": [[1.0, 2.5], [3.0, 4.0]]}
    assert predict(world, "text", [["grüß"]]) == {"x": [["grüß"]]}
    assert predict(world, "identity_bool", [True, False]) == {"x": [True, False]}


def test_several_inputs_have_their_names(world: Running) -> None:
    row = list(range(16))
    assert predict(world, "simple", {"INPUT0": row, "INPUT1": row})["OUTPUT1"] == [0] * 16
    assert predict(world, "simple", row) == "the JSON is not an object with the model's inputs: INPUT0, INPUT1"
    assert predict(world, "simple", {"INPUT0": row}) == "there is no 'INPUT1' in the JSON"
    assert "dimension for rows" in predict(world, "simple", {"INPUT0": row, "INPUT1": [row]})


X, K = TensorSpec("x", "FP32", (-1, 3)), struct.pack("<f", 7)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (-1,), (-1, 1)])
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_a_single_value_stands_beside_rows(shape: tuple[int, ...], rows: int) -> None:
    """Where the model has it for each row, it is every row's."""
    x, k = [[1, 2, 3]] * rows, TensorSpec("k", "FP32", shape)
    tensors, whole = read_inputs({"x": x, "k": 7} if rows else {"x": [1, 2, 3], "k": 7}, (X, k))
    expected = tuple(rows or 1 if size == -1 else size for size in shape)
    assert (tensors[1].shape, tensors[1].data, whole) == (expected, K * math.prod(expected), rows > 0)
    assert tensors[0].shape == (rows or 1, 3)


@pytest.mark.parametrize("value", [[7], [[7]], [7, 8, 9, 10]])
def test_what_has_no_rows_says_nothing_of_them(value: Any) -> None:
    shape = (len(value),) if value[0] != [7] else (1, 1)
    for x, rows in (([1, 2, 3], False), ([[1, 2, 3]], True)):
        tensors, whole = read_inputs({"x": x, "k": value}, (X, TensorSpec("k", "FP32", shape)))
        assert (tensors[1].shape, whole) == (shape, rows)


def test_a_text_beside_rows_is_every_rows_and_bounded() -> None:
    specs = (X, TensorSpec("t", "BYTES", (-1,)), TensorSpec("on", "BOOL", (-1, 1)))
    tensors, whole = read_inputs({"x": [[1, 2, 3]] * 3, "t": "grüß", "on": True}, specs)
    assert whole and (tensors[1].shape, tensors[1].data) == ((3,), ["grüß".encode()] * 3)
    assert (tensors[2].shape, tensors[2].data) == ((3, 1), b"\1\1\1")
    with pytest.raises(ServeError) as refused:
        read_inputs({"x": [[1, 2, 3]] * 20, "t": "x" * 100, "on": True}, specs, limit=2000)
    assert refused.value.status == 413


def test_a_value_that_is_no_row_is_left_to_the_model(world: Running) -> None:
    assert read_inputs({"x": 7}, (X,))[0][0].shape == ()
    assert "input 'x' has the shape []" in predict(world, "identity_fp32", 7)


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        ("identity_int64", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]),
        ("identity_uint64", [2**53 + 1, 2**64 - 1]),
    ],
)
def test_whole_numbers_are_exact(world: Running, model: str, numbers: list[int]) -> None:
    assert predict(world, model, numbers) == {"x": numbers}
    assert "no " in predict(world, model, [2**64])
    assert "no " in predict(world, model, [float(2**53)])


@pytest.mark.parametrize("datatype", ["fp64", "fp32"])
def test_a_name_is_not_rounded(world: Running, datatype: str) -> None:
    """A model that takes floats would get another's number."""
    for number in (2**53 + 1, -(2**60) - 1):
        says = f"input 'x': {number} is an {datatype.upper()} only when rounded"
        assert predict(world, f"identity_{datatype}", [[0.5, number]]) == says
    exact = [2**53, -(2**60), 1e300 if datatype == "fp64" else 2.0**100]
    assert predict(world, f"identity_{datatype}", exact) == {"x": exact}


def test_what_json_has_no_word_for_is_null(world: Running) -> None:
    status, text = ask(world, "/predict/identity_fp32", b"[Infinity, 0, -Infinity]")
    assert (status, json.loads(text)) == (200, {"outputs": {"x": [None, 0.0, None]}})


def test_a_mistake_is_told(world: Running) -> None:
    assert predict(world, "identity_fp32", [[1, 2], [3]]) == "input 'x': its arrays are not of one length"
    assert predict(world, "identity_fp32", ["a", "b"]) == "input 'x': its data has values that are no FP32"
    assert ask(world, "/predict/identity_fp32", b"[1,")[0] == 400
    assert ask(world, "/predict", b"[1]") == (
        400,
        json.dumps({"error": "name a model: POST /predict/MODEL; there are: " + ", ".join(sorted(_names(world)))}),
    )
    assert ask(world, "/predict/identity_fp32")[0] == 405


def _names(world: Running) -> list[str]:
    return [entry.name for entry in world.engine.index()]


def test_a_text_is_a_row_by_itself() -> None:
    """For a model that takes one text, {"prompt": "…"} is enough."""
    tensors, whole = read_inputs({"prompt": "To be"}, (TensorSpec("prompt", "BYTES", (-1,)),))
    assert (tensors[0].shape, tensors[0].data, whole) == ((1,), [b"To be"], False)


def test_the_page_has_the_models_and_a_form_for_each(world: Running) -> None:
    status, page = ask(world, "/")
    assert status == 200
    for name in ("simple", "text", "odd name é"):
        assert f'data-model="{name}"' in page
    assert '<form method=post action="/predict/odd%20name%20%C3%A9">' in page
    state = json.loads(ask(world, "/state")[1])
    assert {model["name"] for model in state["models"]} == set(_names(world))


def test_the_form_works_without_javascript(world: Running) -> None:
    """A browser then sends the form itself and shows the answer as a page."""
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    body = urllib.parse.urlencode({"input": "[1, 2]"}).encode()
    status, page = ask(world, "/predict/identity_fp32", body, **form)
    assert status == 200 and "{&quot;outputs&quot;: {&quot;x&quot;: [1.0, 2.0]}}" in page
    bad = urllib.parse.urlencode({"input": "<script>alert(1)</script>"}).encode()
    status, page = ask(world, "/predict/identity_fp32", bad, **form)
    assert status == 400 and "<script>" not in page and "&lt;script&gt;" in page


def test_curl_that_calls_its_json_a_form_is_understood(world: Running) -> None:
    status, text = ask(
        world, "/predict/identity_fp32", b"[1, 2]", Content_Type="application/x-www-form-urlencoded"
    )
    assert (status, json.loads(text)) == (200, {"outputs": {"x": [1.0, 2.0]}})
