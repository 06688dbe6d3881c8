"""Large requests and answers are read and written beside the event loop, and only where that is for something."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.serve.running import Running, running
from torchpar.serve.errors import ServeError
from torchpar.serve.limits import Limits
from torchpar.serve.protocol import apart as beside
from torchpar.serve.protocol.apart import Apart
from torchpar.serve.protocol.parsing import parse_json

pytestmark = pytest.mark.subprocess

COUNT = 40_000


class Counting(ThreadPoolExecutor):
    """Counts what it is given to do."""

    count = 0

    def submit(self, *arguments: Any, **more: Any) -> Future[Any]:
        self.count += 1
        return super().submit(*arguments, **more)


@pytest.fixture
def world() -> Iterator[Running]:
    with running() as started:
        started.service.threads.shutdown()
        started.service.threads = Counting(2)
        yield started


def ask(world: Running, path: str, body: bytes, **fields: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", world.port, timeout=300)
    try:
        connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in fields.items()})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def strings(name: str, **parameters: Any) -> tuple[bytes, bytes]:
    """A request with many elements of BYTES after its JSON."""
    data = struct.pack("<I4s", 4, b"abcd") * COUNT
    tensor = {"name": name, "datatype": "BYTES", "shape": [COUNT, 1], "parameters": {"binary_data_size": len(data)}}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode(), data


def infer(world: Running, model: str, text: bytes, data: bytes) -> tuple[int, bytes]:
    return ask(world, f"/v2/models/{model}/infer", text + data, Inference_Header_Content_Length=str(len(text)))


def test_a_large_input_of_plain_json_is_read_beside_and_so_is_the_answer_written(world: Running) -> None:
    values = [[float(i), 0.5] for i in range(COUNT)]
    status, text = ask(world, "/predict/identity_fp32", json.dumps(values).encode())
    assert status == 200 and json.loads(text) == {"outputs": {"x": values}}
    assert world.service.threads.count == 2


def test_a_large_form_is_read_beside(world: Running) -> None:
    """Percent signs count threefold."""
    body = "input=" + urllib.parse.quote(json.dumps([[["x"] * COUNT]]))
    kind = "application/x-www-form-urlencoded"
    status, text = ask(world, "/predict/text", body.encode(), Content_Type=kind)
    assert status == 400 and b"<h1>Error 400</h1>" in text
    assert world.service.threads.count == 1


def test_many_bytes_elements_are_taken_apart_and_put_together_beside(world: Running) -> None:
    """16 million empty ones fit a body."""
    text, data = strings("x", binary_data_output=True)
    status, answer = infer(world, "text", text, data)
    assert status == 200 and answer.endswith(data)
    assert world.service.threads.count == 1  # the answer has less than 128 Ki elements


@pytest.mark.parametrize(
    ("model", "name", "status", "says"),
    [
        ("nothing", "x", 404, b"unknown model"),
        ("identity_fp32", "x", 400, b"model 'identity_fp32' has no input 'x' of BYTES"),
        ("text", "y", 400, b"model 'text' has no input 'y' of BYTES"),
    ],
)
def test_large_requests_that_are_for_nothing_are_not_read(
    world: Running, model: str, name: str, status: int, says: bytes
) -> None:
    got = infer(world, model, *strings(name))
    assert got[0] == status and says in got[1]
    assert world.service.threads.count == 0


def test_large_json_is_read_beside_and_its_answer_written_beside(world: Running) -> None:
    values = [0.5] * COUNT * 2
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [COUNT, 2], "data": values}]}
    status, answer = ask(world, "/v2/models/identity_fp32/infer", json.dumps(request).encode())
    assert status == 200 and json.loads(answer)["outputs"][0]["data"] == values
    assert world.service.threads.count == 2
    assert ask(world, "/v2/models/nothing/infer", json.dumps(request).encode())[0] == 404
    assert world.service.threads.count == 2


LARGE = COUNT * 10


def test_much_json_is_read_and_written_by_another_process(world: Running) -> None:
    """All forms of a request and of an answer; what is wrong with one is told as ever."""
    values = [float(i) for i in range(LARGE)]
    tensor = {"name": "x", "datatype": "FP32", "shape": [LARGE, 1], "data": values}
    path = "/v2/models/identity_fp32/infer"
    status, answer = ask(world, path, json.dumps({"inputs": [tensor]}).encode())
    assert status == 200 and json.loads(answer)["outputs"][0]["data"] == values
    assert len(world.service.apart.pids()) == 1
    body = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    status, answer = ask(world, path, body)
    assert status == 200 and answer.endswith(struct.pack(f"<{LARGE}f", *values))
    status, answer = ask(world, path, json.dumps({"inputs": [tensor]}).encode(), Accept_Encoding="gzip")
    assert status == 200 and json.loads(gzip.decompress(answer))["outputs"][0]["data"] == values
    status, answer = ask(world, path, json.dumps({"inputs": [{**tensor, "shape": [LARGE, 2]}]}).encode())
    assert status == 400 and b"its shape needs 800000" in answer
    status, answer = ask(world, "/predict/identity_fp32", json.dumps([[value] for value in values]).encode())
    assert status == 200 and json.loads(answer)["outputs"]["x"] == [[value] for value in values]
    status, answer = ask(world, "/predict/identity_fp32", json.dumps([values, values[1:]]).encode())
    assert status == 400 and b"its arrays are not of one length" in answer
    texts = ["a", "", "zwölf"] * LARGE
    tensor = {"name": "x", "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
    status, answer = ask(world, "/v2/models/text/infer", json.dumps({"inputs": [tensor]}).encode())
    assert status == 200 and json.loads(answer)["outputs"][0]["data"] == texts


def test_another_process_is_small_and_says_what_failed() -> None:
    """It has no torch; a bug there is one here."""
    apart = Apart()
    try:
        assert apart.call(os.getpid) in apart.pids()
        assert apart.call(eval, "'torch' in __import__('sys').modules") is False
        with pytest.raises(ServeError, match="not JSON") as refused:
            apart.call(parse_json, b"{")
        assert refused.value.status == 400
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            apart.call(divmod, 1, 0)
        assert len(apart.pids()) == 1
        (idle,) = apart.pids()
        os.kill(idle, signal.SIGKILL)
        assert apart.call(os.getpid) != idle  # what died while it had nothing to do is nobody's failure
        with pytest.raises(ServeError, match="try again") as died:
            apart.call(os._exit, 1)
        assert died.value.status == 503 and apart.pids() == []
    finally:
        apart.close()


def test_another_process_that_has_nothing_to_do_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "IDLE_SECONDS", 0.2)
    apart = Apart()
    try:
        pid = apart.call(os.getpid)
        until(lambda: not os.path.exists(f"/proc/{pid}"))
        assert apart.call(os.getpid) != pid
    finally:
        apart.close()


def test_what_is_never_large_is_refused_when_it_is(world: Running) -> None:
    """Settings and orders are read where all requests are."""
    for path in ("/v2/repository/index", "/v2/logging", "/v2/repository/models/text/load"):
        status, answer = ask(world, path, b"[" * 200_000)
        assert status == 413 and b"the limit of this one is 131072" in answer


class Later(ThreadPoolExecutor):
    """Does nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__(1)
        self.release = threading.Event()
        super().submit(self.release.wait)


@pytest.mark.parametrize("path", ["/v2/models/identity_fp32/infer", "/predict/identity_fp32"])
def test_answers_that_wait_to_be_written_are_bounded_too(path: str) -> None:
    """Hundreds can be computed while one is written as JSON."""
    count, size = 50_000, 200_000
    with running(limits=Limits(owed=int(size * 1.5))) as world:
        world.service.threads.shutdown()
        world.service.threads = later = Later()
        tensor = {"name": "x", "datatype": "FP32", "shape": [count, 1], "parameters": {"binary_data_size": size}}
        text = json.dumps({"inputs": [tensor]}).encode()
        fields = {"Inference_Header_Content_Length": str(len(text))}
        answers: list[tuple[int, bytes]] = []
        first = threading.Thread(
            target=lambda: answers.append(ask(world, "/v2/models/identity_fp32/infer", text + bytes(size), **fields))
        )
        first.start()
        while not world.server.state.owed:
            time.sleep(0.01)
        assert world.server.state.owed == size
        if path.startswith("/predict"):
            text, fields = json.dumps([[0]] * 100).encode(), {}
            status, answer = ask(world, path, text)
            assert status == 200 and world.server.state.owed == size  # a small one is given all the same
        else:
            status, answer = ask(world, path, text + bytes(size), **fields)
            assert status == 503 and b"have not taken" in answer
        later.release.set()
        first.join(300)
        assert answers[0][0] == 200 and json.loads(answers[0][1])["outputs"][0]["data"] == [0.0] * count
        while world.server.state.owed:
            time.sleep(0.01)


def test_requests_of_very_many_names_are_not_passed_on(world: Running) -> None:
    """The process that reads them would send millions of them to the one that serves."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    path = "/v2/models/identity_fp32/infer"
    many = [{**tensor, "name": f"{number}"} for number in range(5000)]
    for fields, message in (
        ({"inputs": many}, "there are 5000 inputs; the limit is 4096"),
        ({"inputs": [tensor], "outputs": many}, "there are 5000 outputs; the limit is 4096"),
        ({"inputs": [tensor], "parameters": {str(n): n for n in range(5000)}}, "there are 5000 parameters; the limit"),
        ({"inputs": [tensor], "id": "x" * 70_000}, "'id' has 70000 characters; the limit is 65536"),
        ({"inputs": [{**tensor, "name": "x" * 70_000}]}, "an input's name has 70000 characters"),
        ({"inputs": [tensor], "parameters": {"x" * 70_000: 1}}, "a parameter has 70000 characters"),
    ):
        status, answer = ask(world, path, json.dumps(fields).encode())
        assert status == 400 and message in json.loads(answer)["error"]


def test_large_bodies_count_until_they_are_answered() -> None:
    """While they wait to be read, too."""
    limits = Limits(held=1_000_000)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}).encode()
    path = "/v2/models/identity_fp32/infer"
    with running(limits=limits) as world:
        world.service.threads.shutdown()
        world.service.threads = later = Later()
        large = body + b" " * 600_000
        answers: list[tuple[int, bytes]] = []
        first = threading.Thread(target=lambda: answers.append(ask(world, path, large)))
        first.start()
        until(lambda: world.server.state.held == len(large))
        status, answer = ask(world, path, large)
        assert status == 503 and b"holds as many requests as it may" in answer
        assert ask(world, path, body)[0] == 200
        later.release.set()
        first.join()
        assert answers[0][0] == 200
        until(lambda: world.server.state.held == 0)


def test_much_json_is_read_piece_by_piece() -> None:
    """As JSON's values it is many times as large."""
    room = beside._Room()
    taken: list[str] = []

    def take(name: str, size: int, leave: threading.Event) -> threading.Thread:
        def run() -> None:
            with room.take(size):
                taken.append(name)
                leave.wait()
            taken.append(f"no {name}")

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    leave = threading.Event()
    large = take("large", beside.ROOM * 2, leave)
    until(lambda: taken == ["large"])
    small = take("small", 1, leave)
    assert taken == ["large"]
    leave.set()
    large.join()
    small.join()
    assert taken.index("small") > taken.index("large")
