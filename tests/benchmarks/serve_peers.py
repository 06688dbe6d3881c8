"""The servers that the serving benchmark compares, each as its documentation says: what to install, start and ask.

Every one computes with the same TorchScript file and torch, in as many threads or processes as there are CPUs, one
compute thread each, batches of 32 at the most; all have it optimized for inference, torchpar by the file's description.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """One HTTP request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Peer:
    """One server. `start` writes what it needs into a folder and returns the command; `ready` is a path that is 200.

    `ask` makes the request over HTTP; where there is none, the server is asked over gRPC, on the port after HTTP's.
    """

    name: str
    packages: Sequence[str]
    start: Callable[[Path, str, Path, int, int], list[str]]
    ready: str
    ask: Callable[[dict[str, Any]], Question] | None = None
    several_rows: bool = True  # in a request


def ask_binary(path: str) -> Callable[[dict[str, Any]], Question]:
    """The Open Inference Protocol's binary form, input and output."""

    def ask(about: dict[str, Any]) -> Question:
        kind = "f" if about["datatype"] == "FP32" else "q"
        data = struct.pack(f"<{len(about['row'])}{kind}", *about["row"])
        header = {
            "inputs": [
                {
                    "name": "x",
                    "datatype": about["datatype"],
                    "shape": [about["rows"], *about["shape"]],
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        fields = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(text)),
        }
        return Question(path, fields, text + data)

    return ask


def ask_json(path: str) -> Callable[[dict[str, Any]], Question]:
    """Its JSON form, for servers that know no other."""

    def ask(about: dict[str, Any]) -> Question:
        shape = [about["rows"], *about["shape"]]
        tensor = {"name": "x", "datatype": about["datatype"], "shape": shape, "data": about["row"]}
        return Question(path, {"Content-Type": "application/json"}, json.dumps({"inputs": [tensor]}).encode())

    return ask


def ask_plain(path: str) -> Callable[[dict[str, Any]], Question]:
    """An object with one row of the row's shape."""

    def ask(about: dict[str, Any]) -> Question:
        row = _nested(about["row"], about["shape"])
        return Question(path, {"Content-Type": "application/json"}, json.dumps({"x": row}).encode())

    return ask


def _nested(values: list[Any], shape: list[int]) -> list[Any]:
    """Lists within lists, as the shape says."""
    if len(shape) == 1:
        return values
    size = len(values) // shape[0]
    return [_nested(values[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


def _script(text: str) -> Callable[[Path, str, Path, int, int], list[str]]:
    """A server that is a Python program of its own: MODEL, DTYPE, PORT and WORKERS are set in it."""

    def start(folder: Path, python: str, model: Path, port: int, workers: int) -> list[str]:
        about = json.loads(model.with_suffix(".json.row").read_text())
        dtype = "float32" if about["datatype"] == "FP32" else "int64"
        head = f"MODEL, DTYPE, PORT, WORKERS = {str(model)!r}, {dtype!r}, {port}, {workers}\n"
        head += f"SHAPE, OUTPUTS = {about['shape']!r}, {[len(about['answer'])]!r}\n"
        (folder / "peer.py").write_text(head + text)
        return [python, str(folder / "peer.py")]

    return start


def _torchpar(processes: str) -> Callable[[Path, str, Path, int, int], list[str]]:
    """As the unit runs it, with so many inference processes."""

    def start(folder: Path, python: str, model: Path, port: int, workers: int) -> list[str]:
        script = Path(__file__).parent / "serve_unit.py"
        return [python, str(script), str(port), str(model), str(workers), processes]

    return start


def _torchpar_grpc(folder: Path, python: str, model: Path, port: int, workers: int) -> list[str]:
    return [*_torchpar("auto")(folder, python, model, port, workers), f"127.0.0.1:{port + 1}"]


LEAST = """
import asyncio, json, os, pathlib, re, socket, struct, uvloop

about = json.loads(pathlib.Path(MODEL).with_suffix(".json.row").read_text())
row_size = len(about["row"]) * (4 if DTYPE == "float32" else 8)

def make_answer(rows):
    data = struct.pack(f"<{len(about['answer'])}f", *about["answer"]) * rows
    output = {"name": "y", "datatype": "FP32", "shape": [rows, *OUTPUTS], "parameters": {"binary_data_size": len(data)}}
    value = {"model_name": "m", "model_version": "1", "outputs": [output]}
    text = json.dumps(value, separators=(",", ":")).encode()
    head = b"HTTP/1.1 200 OK\\r\\nDate: Tue, 01 Dec 2026 00:00:00 GMT\\r\\n"
    head += b"Content-Type: application/octet-stream\\r\\n"
    head += b"Inference-Header-Content-Length: %d\\r\\n" % len(text)
    return head + b"Content-Length: %d\\r\\n\\r\\n" % (len(text) + len(data)) + text + data

answers = [make_answer(rows) for rows in range(65)]
length = re.compile(rb"\\r\\ncontent-length: *([0-9]+)", re.I)

class Least(asyncio.Protocol):
    data = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        data = self.data + data
        end = data.find(b"\\r\\n\\r\\n")
        found = length.search(data, 0, end)
        size = int(found[1]) if found else 0
        if end < 0 or len(data) < end + 4 + size:
            self.data = data
            return
        self.data = b""
        self.transport.write(answers[size // row_size])

async def serve(channel):
    loop = asyncio.get_running_loop()

    def take():
        _, files, _, _ = socket.recv_fds(channel, 1, 1)
        if not files:
            os._exit(0)
        loop.create_task(loop.connect_accepted_socket(Least, socket.socket(fileno=files[0])))

    loop.add_reader(channel, take)
    await loop.create_future()

listener = socket.create_server(("127.0.0.1", PORT), backlog=4096)
channels = []
for _ in range(WORKERS):
    ours, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        listener.close()
        uvloop.run(serve(theirs))
    theirs.close()
    channels.append(ours)
while True:
    accepted, _ = listener.accept()
    channels.append(channels.pop(0))
    socket.send_fds(channels[-1], [b"x"], [accepted.fileno()])
    accepted.close()
"""

LITSERVE = """
import litserve, torch

class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.model = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(MODEL).eval()))

    def decode_request(self, request):
        return torch.tensor(request["x"], dtype=getattr(torch, DTYPE))

    def batch(self, inputs):
        return torch.stack(inputs)

    def predict(self, x):
        with torch.inference_mode():
            return self.model(x)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"y": output.tolist()}

if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=WORKERS, generate_client_file=False, log_level="warning")
"""

KSERVE = """
import numpy, torch
from kserve import InferOutput, InferResponse, Model, ModelServer

class Served(Model):
    def __init__(self):
        super().__init__("m")
        torch.set_num_threads(1)
        self.model = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(MODEL).eval()))
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        x = torch.from_numpy(numpy.array(payload.inputs[0].as_numpy()))
        with torch.inference_mode():
            y = self.model(x).numpy()
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=True)
        return InferResponse(payload.id or "0", "m", [output])

if __name__ == "__main__":
    ModelServer(http_port=PORT, enable_grpc=False, workers=1, access_log_format=None).start([Served()])
"""

PYTRITON = """
import numpy, torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

torch.set_num_threads(1)

def make():
    model = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(MODEL).eval()))

    @batch
    def infer(x):
        with torch.inference_mode():
            return [model(torch.from_numpy(x)).numpy()]

    return infer

config = TritonConfig(http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, log_verbose=0)
with Triton(config=config) as triton:
    triton.bind(
        model_name="m",
        infer_func=[make() for _ in range(WORKERS)],
        inputs=[Tensor(name="x", dtype=getattr(numpy, DTYPE), shape=tuple(SHAPE))],
        outputs=[Tensor(name="y", dtype=numpy.float32, shape=tuple(OUTPUTS))],
        config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
    )
    triton.serve()
"""

TRITON = """
import numpy, torch
import triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(1)
        self.model = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(MODEL).eval()))

    def execute(self, requests):
        rows = [utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        with torch.inference_mode():
            y = self.model(torch.from_numpy(numpy.concatenate(rows))).numpy()
        ends = numpy.cumsum([len(row) for row in rows])[:-1]
        return [utils.InferenceResponse([utils.Tensor("y", part)]) for part in numpy.split(y, ends)]
"""

TRITON_CONFIG = """
name: "m"
backend: "python"
max_batch_size: 32
dynamic_batching {{ }}
input [ {{ name: "x" data_type: {kind} dims: {shape} }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: {outputs} }} ]
instance_group [ {{ kind: KIND_CPU count: {count} }} ]
"""


def _tritonserver(*, one: bool) -> Callable[[Path, str, Path, int, int], list[str]]:
    """Triton itself, of PyTriton's wheel, with its Python backend: one instance of the model, or one for each CPU."""

    def start(folder: Path, python: str, model: Path, port: int, workers: int) -> list[str]:
        about = json.loads(model.with_suffix(".json.row").read_text())
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        packages = Path(python).parents[1] / f"lib/python{version}/site-packages"
        wheel = packages / "pytriton/tritonserver"
        backend = folder / "backends/python"
        shutil.copytree(wheel / "backends/python", backend)
        stub = backend / "triton_python_backend_stub"
        shutil.copy(wheel / f"python_backend_stubs/{version}/triton_python_backend_stub", stub)
        stub.chmod(0o755)
        (folder / "models/m/1").mkdir(parents=True)
        # Its stub passes over PYTHONPATH=, and answers with empty tensors under numpy 2; the wheel has numpy 1.
        paths = [str(packages), next(path for path in sys.path if path.endswith("site-packages"))]
        head = f"import sys\nsys.path[:0] = {paths!r}\nMODEL = {str(model)!r}\n"
        (folder / "models/m/1/model.py").write_text(head + TRITON)
        kind = "TYPE_FP32" if about["datatype"] == "FP32" else "TYPE_INT64"
        text = TRITON_CONFIG.format(
            kind=kind, shape=about["shape"], outputs=[len(about["answer"])], count=1 if one else workers
        )
        (folder / "models/m/config.pbtxt").write_text(text)
        serve = f"{wheel}/bin/tritonserver --model-repository={folder}/models --backend-directory={folder}/backends"
        ports = f"--http-port={port} --grpc-port={port + 1} --metrics-port={port + 2} --allow-gpu-metrics=false"
        libraries = f"LD_LIBRARY_PATH={packages / 'nvidia_pytriton.libs'}"
        return ["sh", "-ec", f"exec env {libraries} {serve} {ports} --disable-auto-complete-config"]

    return start


MLSERVER = """
import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Served(MLModel):
    async def load(self):
        torch.set_num_threads(1)
        self.model = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(MODEL).eval()))
        return True

    async def predict(self, payload):
        x = torch.from_numpy(NumpyCodec.decode_input(payload.inputs[0]))
        with torch.inference_mode():
            y = self.model(x).numpy()
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
"""


def _mlserver(folder: Path, python: str, model: Path, port: int, workers: int) -> list[str]:
    _script(MLSERVER)(folder, python, model, port, workers)
    settings = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "host": "127.0.0.1"}
    settings |= {"parallel_workers": workers, "debug": False, "use_structured_logging": False}
    served = {"name": "m", "implementation": "peer.Served", "max_batch_size": 32, "max_batch_time": 0.005}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(served))
    return [str(Path(python).parent / "mlserver"), "start", str(folder)]


TORCHSERVE = """
import json
import torch

class Handler:
    def initialize(self, context):
        torch.set_num_threads(1)
        self.model = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(MODEL).eval()))

    def handle(self, data, context):
        rows = [row.get("body") or row.get("data") for row in data]
        rows = [row if isinstance(row, dict) else json.loads(bytes(row)) for row in rows]
        with torch.inference_mode():
            y = self.model(torch.tensor([row["x"] for row in rows], dtype=getattr(torch, DTYPE)))
        return [{"y": row} for row in y.tolist()]

_handler = Handler()

def handle(data, context):
    if not hasattr(_handler, "model"):
        _handler.initialize(context)
    return None if data is None else _handler.handle(data, context)
"""


def _torchserve(folder: Path, python: str, model: Path, port: int, workers: int) -> list[str]:
    _script(TORCHSERVE)(folder, python, model, port, workers)
    served = {"1.0": {"minWorkers": workers, "maxWorkers": workers, "batchSize": 32, "maxBatchDelay": 5}}
    addresses = {"inference_address": port, "management_address": port + 1, "metrics_address": port + 2}
    lines = [f"{name}=http://127.0.0.1:{number}" for name, number in addresses.items()]
    lines += ["disable_token_authorization=true", "enable_envvars_config=false", f"models={json.dumps({'m': served})}"]
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    bin = Path(python).parent
    archive = f"{bin}/torch-model-archiver --model-name m --version 1.0 --handler peer.py --export-path ."
    serve = f"exec {bin}/torchserve --start --foreground --model-store {folder} --models m=m.mar --ts-config"
    return ["sh", "-ec", f"export PATH={bin}:$PATH; {archive}; {serve} {folder}/config.properties"]


INFER = "/v2/models/m/infer"
# PyTriton, and Triton itself.
PYTRITON_WHEEL = ("nvidia-pytriton==0.7.0", "numpy<2")

PEERS = {
    peer.name: peer
    for peer in (
        Peer("torchpar", (), _torchpar("auto"), "/v2/health/ready", ask_binary(INFER)),
        Peer("torchpar-1", (), _torchpar("1"), "/v2/health/ready", ask_binary(INFER)),
        Peer("torchpar-json", (), _torchpar("auto"), "/v2/health/ready", ask_json(INFER)),
        # What every server costs: it computes nothing, and its answer was made before.
        Peer("least", ("uvloop==0.21.0",), _script(LEAST), "/", ask_binary(INFER)),
        Peer("mlserver", ("mlserver==1.7.1", "uvloop==0.21.0"), _mlserver, "/v2/models/m/ready", ask_json(INFER)),
        Peer(
            "litserve",
            ("litserve==0.2.19",),
            _script(LITSERVE),
            "/health",
            ask_plain("/predict"),
            several_rows=False,
        ),
        Peer("kserve", ("kserve==0.21.0",), _script(KSERVE), "/v2/models/m/ready", ask_binary(INFER)),
        Peer(
            "torchserve",
            ("torchserve==0.12.0", "torch-model-archiver==0.12.0", "pyyaml"),
            _torchserve,
            "/ping",
            ask_plain("/predictions/m"),
            several_rows=False,
        ),
        Peer("pytriton", PYTRITON_WHEEL, _script(PYTRITON), "/v2/models/m/ready", ask_binary(INFER)),
        Peer("tritonserver", PYTRITON_WHEEL, _tritonserver(one=True), "/v2/models/m/ready", ask_binary(INFER)),
        Peer("tritonserver-cpus", PYTRITON_WHEEL, _tritonserver(one=False), "/v2/models/m/ready", ask_binary(INFER)),
        Peer("torchpar-grpc", (), _torchpar_grpc, "/v2/health/ready"),
        Peer("tritonserver-grpc", PYTRITON_WHEEL, _tritonserver(one=True), "/v2/models/m/ready"),
        Peer("tritonserver-cpus-grpc", PYTRITON_WHEEL, _tritonserver(one=False), "/v2/models/m/ready"),
        Peer("tritonserver-json", PYTRITON_WHEEL, _tritonserver(one=False), "/v2/models/m/ready", ask_json(INFER)),
    )
}
