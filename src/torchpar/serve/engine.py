"""The engine: models in memory, requests in, answers out. The protocols know this and nothing below it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

from torchpar.serve.errors import ServeError
from torchpar.serve.metadata import READY, UNAVAILABLE, ModelIndex, ModelMetadata
from torchpar.serve.models.description import Description
from torchpar.serve.models.torchscript import TorchScript
from torchpar.serve.models.values import DATATYPES, bytes_of, empty_input
from torchpar.serve.requests import Done, Request, Response, Ticket
from torchpar.serve.settings import EngineSettings
from torchpar.serve.statistics import BACKEND, CANCELED, Statistics
from torchpar.serve.tensors import Tensor, byte_size

VERSION = "1"


class Waiting(Ticket):
    """A request between `submit` and its end."""

    __slots__ = ("request", "done", "arrived", "cancelled")

    def __init__(self, request: Request, done: Done) -> None:
        self.request = request
        self.done = done
        self.arrived = time.monotonic()
        self.cancelled = False

    def cancel(self) -> None:
        """Mark it; the worker passes over it."""
        self.cancelled = True


class Engine:
    """All methods but the constructor belong to the event loop's thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._program: TorchScript | None = None
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._statistics = Statistics()
        self._thread: threading.Thread | None = None
        self._open = 0

    async def start(self) -> None:
        """Load and try the models; then `ready()` is true. Raises ModelError when there is none to serve."""
        self._loop = asyncio.get_running_loop()
        assert self.settings.model
        self._program = await self._loop.run_in_executor(None, TorchScript, self.settings.model, Description())
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    async def stop(self, drain_timeout: float) -> None:
        """Take no more requests, answer those that were accepted, at most drain_timeout seconds; 503 to the rest."""
        program, self._program = self._program, None
        end = time.monotonic() + drain_timeout
        while program and self._open and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self._queue.put(None)

    def submit(self, request: Request, done: Done) -> Ticket:
        """Accept a request; `done` is called on the event loop, later.

        Raises ServeError for what is refused at once.
        """
        if request.model != self.settings.name or request.version not in ("", VERSION):
            raise ServeError(404, f"there is no model '{request.model}' {request.version}")
        if self._program is None:
            raise ServeError(503, f"model '{request.model}' is not ready", self.retry_after())
        for tensor, spec in zip(request.inputs, self._program.inputs):
            size = byte_size(tensor.datatype, tensor.shape)
            if tensor.datatype != spec.datatype or size != len(tensor.data):
                raise ServeError(400, f"input '{tensor.name}' does not fit")
        waiting = Waiting(request, done)
        self._open += 1
        self._queue.put(waiting)
        return waiting

    def _work(self) -> None:
        assert self._program
        run = self._program.run
        while (waiting := self._queue.get()) is not None:
            answer = self._answer(waiting, run)
            self._loop.call_soon_threadsafe(self._finish, waiting, answer)

    def _answer(self, waiting: Waiting, run: Any) -> Response | ServeError:
        taken = time.monotonic()
        request = waiting.request
        if waiting.cancelled:
            self._statistics.failure(CANCELED, taken - waiting.arrived)
            return ServeError(499, "cancelled")
        if request.deadline is not None and request.deadline < taken:
            self._statistics.failure(CANCELED, taken - waiting.arrived)
            return ServeError(504, "the deadline passed in the queue")
        values = []
        for tensor in request.inputs:
            value, view = empty_input(tensor.datatype, tensor.shape)
            view[:] = tensor.data  # type: ignore[assignment]
            values.append(value)
        ready = time.monotonic()
        try:
            results = run(values)
        except Exception as error:  # the model's own code: whatever it raises is the answer
            self._statistics.failure(BACKEND, time.monotonic() - waiting.arrived)
            return ServeError(500, str(error).strip().splitlines()[-1])
        computed = time.monotonic()
        outputs = [
            Tensor(f"OUTPUT__{i}", DATATYPES[value.dtype], tuple(value.shape), bytes_of(value.contiguous()))
            for i, value in enumerate(results)
        ]
        now = time.monotonic()
        self._statistics.batch(arrivals=[waiting.arrived], rows=1, times=(taken, ready, computed, now, now))
        return Response(request.model, VERSION, request.id, outputs)

    def _finish(self, waiting: Waiting, answer: Response | ServeError) -> None:
        self._open -= 1
        waiting.done(answer)

    def live(self) -> bool:
        """Whether computing makes progress."""
        return self._thread is not None and self._thread.is_alive()

    def ready(self, model: str | None = None, version: str = "") -> bool:
        """Whether a model (every model, if none is named) answers requests."""
        return self._program is not None and model in (None, self.settings.name) and version in ("", VERSION)

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Raises ServeError 404 when there is no such model."""
        if self._program is None or model != self.settings.name:
            raise ServeError(404, f"there is no model '{model}'")
        return ModelMetadata(model, (VERSION,), self._program.platform, self._program.inputs, self._program.outputs)

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """Triton's model configuration, as its clients read it. Raises ServeError 404."""
        face = self.metadata(model, version)
        return {
            "name": model,
            "platform": face.platform,
            "backend": "pytorch",
            "max_batch_size": 0,
            "input": [
                {"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": list(s.shape)} for s in face.inputs
            ],
            "output": [
                {"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": list(s.shape)} for s in face.outputs
            ],
        }

    def index(self) -> list[ModelIndex]:
        """Everything in the repository, served or not."""
        return [ModelIndex(self.settings.name, VERSION, READY if self._program else UNAVAILABLE, "")]

    async def load(self, model: str) -> None:
        """Load a model, or load it again: the new one answers from some moment on, and no request is lost.

        Raises ServeError: 404 when the repository has none of this name, 400 with the reason when it cannot be loaded.
        """
        self.metadata(model)

    async def unload(self, model: str) -> None:
        """Stop serving a model; what was accepted is answered. Raises ServeError 404."""
        self.metadata(model)

    async def reload(self, model: str | None = None) -> None:
        """`load` for every model that is served, or one; models that cannot be loaded stay as they are."""

    def statistics(self, model: str | None = None, version: str = "") -> list[dict[str, Any]]:
        """The statistics extension's objects, for one version, one model or all. Raises ServeError 404."""
        if model not in (None, self.settings.name):
            raise ServeError(404, f"there is no model '{model}'")
        return [self._statistics.as_triton(self.settings.name, VERSION)]

    def counters(self) -> Sequence[tuple[str, str, Statistics, int]]:
        """(model, version, statistics, requests that wait) of all that is served, for /metrics: see Statistics."""
        return [(self.settings.name, VERSION, self._statistics, self._queue.qsize())]

    def retry_after(self, model: str | None = None) -> float:
        """Seconds after which the queue should have room again."""
        return 1.0
