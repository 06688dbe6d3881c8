"""An engine without torch: small models that every client's example knows, and some that misbehave."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from torchpar.serve.engine.metadata import READY, UNAVAILABLE, ModelIndex, ModelMetadata
from torchpar.serve.engine.requests import Done, Request, Response, Ticket
from torchpar.serve.engine.statistics import OTHER, Statistics
from torchpar.serve.errors import ServeError
from torchpar.serve.tensors import SIZES, Tensor, TensorSpec


class EchoTicket(Ticket):
    def cancel(self) -> None:
        pass


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def model(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...] = ()) -> ModelMetadata:
    return ModelMetadata(name, ("1",), "python", inputs, outputs or inputs, rowwise=True, most=8)


MODELS = {
    each.name: each
    for each in (
        model(
            "simple",
            (spec("INPUT0", "INT32", -1, 16), spec("INPUT1", "INT32", -1, 16)),
            (spec("OUTPUT0", "INT32", -1, 16), spec("OUTPUT1", "INT32", -1, 16)),
        ),
        model("odd name é", (spec("x", "FP32", -1, 2),)),
        model("text", (spec("x", "BYTES", -1, 1),)),
        *(model(f"identity_{name.lower()}", (spec("x", name, -1, -1),)) for name in SIZES),
    )
}


class EchoEngine:
    """Has the methods of torchpar.serve.engine.Engine. `full` refuses everything; `requests` keeps what came."""

    def __init__(self) -> None:
        self.unloaded: set[str] = set()
        self.full = False
        self.requests: list[Request] = []
        self._statistics = {name: Statistics() for name in MODELS}

    def submit(self, request: Request, done: Done) -> Ticket:
        metadata = self.metadata(request.model, request.version)
        if self.full:
            raise ServeError(503, "the queue is full", 2.2)
        if request.model in self.unloaded:
            raise ServeError(503, f"model '{request.model}' is not loaded")
        specs = {s.name: s for s in metadata.inputs}
        for tensor in request.inputs:
            if tensor.name not in specs or tensor.datatype != specs[tensor.name].datatype:
                self._statistics[request.model].failure(OTHER)
                raise ServeError(400, f"unexpected inference input '{tensor.name}' for model '{request.model}'")
            if not specs[tensor.name].fits(tensor.shape):
                raise ServeError(400, f"input '{tensor.name}' has the shape {list(tensor.shape)}")
        if len(request.inputs) != len(specs):
            raise ServeError(400, f"expected {len(specs)} inputs but got {len(request.inputs)}")
        self.requests.append(request)
        outputs = request.inputs
        if request.model == "simple":
            count = len(request.inputs[0].data) // 4
            a, b = (struct.unpack(f"<{count}i", tensor.data) for tensor in request.inputs)
            pairs = {"OUTPUT0": list(map(int.__add__, a, b)), "OUTPUT1": list(map(int.__sub__, a, b))}
            shape = request.inputs[0].shape
            outputs = [Tensor(n, "INT32", shape, struct.pack(f"<{count}i", *v)) for n, v in pairs.items()]
        if request.outputs is not None:
            unknown = set(request.outputs) - {tensor.name for tensor in outputs}
            if unknown:
                raise ServeError(400, f"unexpected inference output '{unknown.pop()}' for model '{request.model}'")
            outputs = [tensor for tensor in outputs if tensor.name in request.outputs]
        self._statistics[request.model].batch(arrivals=[0.0], rows=1, times=(0.001, 0.002, 0.003, 0.004, 0.005))
        answer = Response(request.model, "1", request.id, outputs)
        asyncio.get_running_loop().call_soon(done, answer)
        return EchoTicket()

    def live(self) -> bool:
        return True

    def ready(self, model: str | None = None, version: str = "") -> bool:
        return model is None or (model in MODELS and model not in self.unloaded and version in ("", "1"))

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        if model not in MODELS or version not in ("", "1"):
            raise ServeError(404, f"Request for unknown model: '{model}' is not found")
        return MODELS[model]

    def index(self) -> list[ModelIndex]:
        return [ModelIndex(name, "1", UNAVAILABLE if name in self.unloaded else READY, "") for name in MODELS]

    async def load(self, model: str) -> None:
        self.metadata(model)
        self.unloaded.discard(model)

    async def unload(self, model: str) -> None:
        self.metadata(model)
        self.unloaded.add(model)

    def statistics(self, model: str | None = None, version: str = "") -> list[tuple[str, str, Statistics]]:
        if model is not None:
            self.metadata(model, version)
        return [(name, "1", s) for name, s in self._statistics.items() if model in (None, name)]

    def counters(self) -> list[tuple[str, str, Statistics, int]]:
        return [(name, "1", statistics, 0) for name, statistics in self._statistics.items()]

    def unbatched(self) -> dict[str, Any]:
        return {}

    def retry_after(self, model: str | None = None) -> float:
        return 2.2
