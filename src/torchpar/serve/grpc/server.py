"""Serves the inference protocol's calls over gRPC, each by its name."""

from __future__ import annotations

import socket
from collections.abc import Awaitable
from typing import Any, Callable

from torchpar.serve.errors import ServeError
from torchpar.serve.grpc import messages as m
from torchpar.serve.grpc.arriving import UNIMPLEMENTED
from torchpar.serve.grpc.call import Call
from torchpar.serve.grpc.connection import Connection
from torchpar.serve.grpc.handlers import Infer, Stream, Unary
from torchpar.serve.grpc.inference import Inference, decode
from torchpar.serve.grpc.wire import Message
from torchpar.serve.http.server import Server
from torchpar.serve.protocol.service import Service
from torchpar.serve.sockets import listen_on

NAME = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

FINAL = "triton_final_response"
WANTS_FINAL = "triton_enable_empty_final_response"

Answer = Callable[[dict[str, Any], Call], Any]


class GrpcServer:
    """Serves one `Service` on the running event loop."""

    def __init__(self, service: Service, server: Server) -> None:
        """server: whose connections, limits and clock these are too."""
        self._service = service
        self._server = server
        self._state = server.state
        self._limits = server.state.limits
        self._inference = Inference(service, self._limits.json)
        self._listener: socket.socket | None = None
        calls: dict[str, Callable[[Call], Unary | Stream]] = {
            f"/{NAME}/{name}": self._unary(request, answer) for name, (request, answer) in self._calls().items()
        }
        calls[f"/{NAME}/ModelInfer"] = lambda call: Infer(call, service, self._inference)
        calls[f"/{NAME}/ModelStreamInfer"] = lambda call: Stream(call, service, self._stream, _stream_error)
        calls[f"/{HEALTH}/Check"] = self._unary(m.HEALTH_REQUEST, self._health)
        self._handlers = {path.encode(): make for path, make in calls.items()}

    def start(self, address: str) -> int:
        """Listens on "HOST:PORT", HOST being an address; returns the port. Raises OSError when it cannot."""
        listener = listen_on(address, "gRPC")
        self.serve(listener)
        return int(listener.getsockname()[1])

    def serve(self, listener: socket.socket) -> None:
        """Serves on a socket that is bound and listens already."""
        self._listener = listener
        self._server.listen(listener, self.connect)

    def stop(self) -> None:
        """Tells all clients to make further calls elsewhere, and ends the streams in which nothing is due.

        Server.stop, which is to follow, waits for what is.
        """
        if self._listener is not None:
            self._server.listen_no_more(self._listener)
            self._listener.close()
        for connection in self._state.all_connections():
            if isinstance(connection, Connection):
                connection.start_drain()

    def connect(self, peer: Any) -> Connection:
        """Makes the protocol of a connection."""
        return Connection(self._state, peer, self._answer)

    def _answer(self, call: Call) -> None:
        make = self._handlers.get(call.path)
        if make is None:
            call.fail(UNIMPLEMENTED, f"there is no call {call.path[:200].decode('ascii', 'backslashreplace')}")
        else:
            call.start(make(call))

    def _calls(self) -> dict[str, tuple[Message, Answer]]:
        """Returns, by name, the request's message and the function that makes the response's bytes."""
        service, engine = self._service, self._service.engine

        def named(make: Callable[[str, str], Any]) -> Answer:
            return lambda fields, _: make(fields.get("name", ""), fields.get("version", ""))

        def ready(name: str, version: str) -> bytes:
            return m.READY.encode({"ready": engine.ready(name, version) and not self._state.draining})

        def memory(kind: str, verb: str) -> tuple[Message, Answer]:
            def answer(fields: dict[str, Any], _: Any) -> bytes:
                service.shared_memory(kind, verb, fields.get("name", ""))
                return b""

            return m.NAME, answer

        calls: dict[str, tuple[Message, Answer]] = {
            "ServerLive": (m.NOTHING, lambda *_: m.LIVE.encode({"live": engine.live()})),
            "ServerReady": (m.NOTHING, lambda *_: m.READY.encode({"ready": self._is_ready()})),
            "ModelReady": (m.NAME, named(ready)),
            "ServerMetadata": (m.NOTHING, lambda *_: m.SERVER_METADATA.encode(service.server())),
            "ModelMetadata": (m.NAME, named(lambda n, v: m.MODEL_METADATA.encode(service.model(n, v)))),
            "ModelConfig": (m.NAME, named(lambda n, v: m.CONFIG.encode({"config": service.config(n, v)}))),
            "ModelStatistics": (m.NAME, named(lambda n, v: m.STATISTICS.encode(service.statistics(n or None, v)))),
            "RepositoryIndex": (m.INDEX_REQUEST, self._index),
            "RepositoryModelLoad": (m.LOAD_REQUEST, self._load),
            "RepositoryModelUnload": (m.LOAD_REQUEST, self._unload),
            "TraceSetting": (m.TRACE, self._trace),
            "LogSettings": (m.LOG, self._log),
        }
        for kind in ("System", "Cuda"):
            for verb in ("Status", "Register", "Unregister"):
                calls[f"{kind}SharedMemory{verb}"] = memory(kind.lower(), verb.lower())
        return calls

    def _unary(self, request: Message, answer: Answer) -> Callable[[Call], Unary]:
        async def respond(data: bytes | memoryview, call: Call) -> bytes:
            result = answer(await decode(self._service, request, data, self._limits.json), call)
            return bytes(await result if isinstance(result, Awaitable) else result)

        return lambda call: Unary(call, self._service, respond)

    async def _stream(self, data: bytes | memoryview, call: Call) -> bytes:
        inference = self._inference
        try:
            request, classes = inference.read_known(data, None) or await inference.read(data, None)
            response = await inference.compute(request)
            if request.parameters.get(WANTS_FINAL) is True:
                response.parameters[FINAL] = True
            answer = b"".join(inference.write(response, classes))
        except ServeError as error:
            return _stream_error(str(error), await inference.names(data))
        return m.STREAM_ANSWER.encode({"infer_response": answer})

    def _is_ready(self) -> bool:
        return self._service.engine.ready() and not self._state.draining

    def _health(self, fields: dict[str, Any], _: Any) -> bytes:
        name = fields.get("service", "")
        if name not in ("", NAME) and not self._service.engine.ready(name):
            raise ServeError(404, f"there is no service '{name}'")
        return m.HEALTH.encode({"status": "SERVING" if self._is_ready() else "NOT_SERVING"})

    def _index(self, fields: dict[str, Any], _: Any) -> bytes:
        return m.INDEX.encode({"models": self._service.index(fields.get("ready", False))})

    async def _load(self, fields: dict[str, Any], call: Call) -> bytes:
        self._check_control(call)
        await self._service.load(fields.get("model_name", ""), fields.get("parameters"))
        return b""

    async def _unload(self, fields: dict[str, Any], call: Call) -> bytes:
        self._check_control(call)
        await self._service.unload(fields.get("model_name", ""), fields.get("parameters"))
        return b""

    def _trace(self, fields: dict[str, Any], call: Call) -> bytes:
        model = fields.get("model_name") or None
        if model is not None:
            self._service.engine.metadata(model, "")
        changes = {name: value.get("value", []) for name, value in fields.get("settings", {}).items()}
        if changes:
            self._check_control(call)
            self._service.change_trace(model, changes)
        values = self._service.trace.values(model).items()
        return m.TRACE.encode({"settings": {n: {"value": v if isinstance(v, list) else [v]} for n, v in values}})

    def _log(self, fields: dict[str, Any], call: Call) -> bytes:
        changes = {name: next(iter(value.values()), "") for name, value in fields.get("settings", {}).items()}
        if changes:
            self._check_control(call)
            self._service.change_log(changes)
        return m.LOG.encode({"settings": {n: _log_field(v) for n, v in self._service.log.values().items()}})

    def _check_control(self, call: Call) -> None:
        if not call.local and not self._service.remote_control:
            raise ServeError(403, "models and settings can be changed from this host only")


def _log_field(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"bool_param": value}
    return {"uint32_param": value} if isinstance(value, int) else {"string_param": value}


def _stream_error(message: str, known: dict[str, Any] | None = None) -> bytes:
    """Makes the message of a stream for a request that failed."""
    return m.STREAM_RESPONSE.encode({"error_message": message, "infer_response": known or {}})
