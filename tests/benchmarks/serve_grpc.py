"""Load over gRPC: ModelInfer by h2load, whose C costs a call next to nothing, and by tritonclient, as users have it.

h2load counts answers of HTTP/2. An answer that is an error has no message, so the bytes of messages tell how many are.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy
import tritonclient.grpc
from tritonclient.grpc import service_pb2

from tests.benchmarks.serve_load import Measured, children_seconds, cpu_seconds
from tests.benchmarks.serve_peers import Question

METHOD = "/inference.GRPCInferenceService/ModelInfer"
PREFIX = struct.Struct(">BI")
# Calls at the same time are spread over so many connections, as a few clients with several threads each have them.
CONNECTIONS = 8


def ask(about: dict[str, Any]) -> Question:
    """One call for one row, its tensor in raw contents, as tritonclient sends it."""
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[_row(about).tobytes()])
    request.inputs.add(name="x", datatype=about["datatype"], shape=[1, *about["shape"]])
    message = request.SerializeToString()
    fields = {"te": "trailers", "content-type": "application/grpc"}
    return Question(METHOD, fields, PREFIX.pack(0, len(message)) + message)


def check(port: int, question: Question, about: dict[str, Any]) -> int:
    """Asks once by tritonclient, and once as h2load does; returns the bytes of the answer. Raises RuntimeError."""
    address = f"127.0.0.1:{port}"
    client = tritonclient.grpc.InferenceServerClient(address)
    try:
        values = client.infer("m", [_input(about)]).as_numpy("y")
    except tritonclient.grpc.InferenceServerException as error:
        raise RuntimeError(str(error)) from None
    finally:
        client.close()
    if values is None or not numpy.allclose(values.ravel(), about["answer"], 1e-3, 1e-3):
        raise RuntimeError(f"a wrong answer: {values} instead of {about['answer'][:3]}")
    with grpc.insecure_channel(address) as channel:
        answer = channel.unary_unary(METHOD)(question.body[PREFIX.size :], timeout=60)
    again = numpy.frombuffer(service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0], numpy.float32)
    if not numpy.allclose(again, about["answer"], 1e-3, 1e-3):
        raise RuntimeError(f"a wrong answer to h2load's call: {again[:3]} instead of {about['answer'][:3]}")
    return PREFIX.size + len(answer)


def closed_loop(port: int, question: Question, calls: int, seconds: float, *, pid: int, size: int) -> Measured:
    """So many calls at the same time. size: bytes of an answer's message, see `check`."""
    with tempfile.TemporaryDirectory(prefix="bench-grpc-") as directory:
        body, log = Path(directory, "body"), Path(directory, "log")
        body.write_bytes(question.body)
        connections = min(calls, CONNECTIONS)
        argv = ["h2load", "-t1", f"-c{connections}", f"-m{calls // connections}", f"-D{max(1, round(seconds))}"]
        argv += [f"-H{name}: {value}" for name, value in question.headers.items()]
        argv += [f"-d{body}", f"--log-file={log}", f"http://127.0.0.1:{port}{question.path}"]
        before, own = cpu_seconds(pid), children_seconds()
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        used, own = cpu_seconds(pid) - before, children_seconds() - own
        lines = [line.split("\t") for line in log.read_text().splitlines()]
    times = sorted(float(line[2]) / 1e3 for line in lines if line[1] == "200")
    if not times:
        raise RuntimeError(f"no answer over gRPC:\n{done.stdout[-2000:]}")
    took = float(re.findall(r"finished in ([\d.]+)s", done.stdout)[0])
    data = int(re.findall(r"\((\d+)\) data", done.stdout)[0])
    errors = len(lines) - min(len(times), data // size)
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    return Measured(len(times) / took, p50, p99, errors, 1e6 * used / len(times), 1e6 * own / len(times))


def client_loop(port: int, about: dict[str, Any], seconds: float, pid: int) -> Measured:
    """One call at a time, by tritonclient."""
    inputs = [_input(about)]
    times: list[float] = []
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        before, own, began = cpu_seconds(pid), time.process_time(), time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            client.infer("m", inputs)
            times.append(1e3 * (time.monotonic() - now))
        took, used = time.monotonic() - began, cpu_seconds(pid) - before
        own = time.process_time() - own
    times.sort()
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    return Measured(len(times) / took, p50, p99, 0, 1e6 * used / len(times), 1e6 * own / len(times))


def _row(about: dict[str, Any]) -> Any:
    return numpy.array([about["row"]], numpy.float32 if about["datatype"] == "FP32" else numpy.int64)


def _input(about: dict[str, Any]) -> Any:
    tensor = tritonclient.grpc.InferInput("x", [1, *about["shape"]], about["datatype"])
    tensor.set_data_from_numpy(_row(about).reshape(1, *about["shape"]))
    return tensor
