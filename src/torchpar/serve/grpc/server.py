"""The gRPC server: which call is what. Only imported where grpcio is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Callable

import grpc
import grpc.aio

from torchpar.serve.errors import ServeError
from torchpar.serve.grpc import messages as m
from torchpar.serve.grpc.inference import decode, infer, parameter_field
from torchpar.serve.grpc.unread import Unread
from torchpar.serve.grpc.wire import Message
from torchpar.serve.http.server import Server
from torchpar.serve.protocol.service import Service

NAME = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

# A message's own bytes around its tensors.
MARGIN = 1 << 20

FINAL = "triton_final_response"
WANTS_FINAL = "triton_enable_empty_final_response"

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Answer = Callable[[dict[str, Any], Any], Any]


class _Counts(dict[Any, int]):
    """Of a stream: by task, what counts of an answer before gRPC has it. over: nobody waits for answers any more."""

    over = False


class GrpcServer:
    """Serves one `Service` on the running event loop."""

    def __init__(self, service: Service, http: Server) -> None:
        """http: whose limits hold here too, and for both together."""
        self._service = service
        self._limits = http.limits
        self._unread = Unread(http)
        self._draining = False
        self._ends: set[Callable[[], None]] = set()  # what ends the streams where nothing is due
        self._server: Any = None

    async def start(self, address: str, *, shared: bool = False) -> int:
        """Listen on "HOST:PORT" or "unix:PATH"; returns the port. Raises OSError when it cannot.

        shared: with other processes of this service, between which the kernel distributes the connections.
        """
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._limits.body + MARGIN),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", self._limits.header),
                # Pings keep a connection alive in firewalls while a call takes long, and never end it. What is not read
                # of their answers is bounded by gRPC itself.
                ("grpc.http2.max_ping_strikes", 0),
                # Two services on one port would share its clients by chance.
                ("grpc.so_reuseport", int(shared)),
            ],
            maximum_concurrent_rpcs=self._limits.connections,
        )
        handlers = {name: self._unary(request, answer) for name, (request, answer) in self._calls().items()}
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        health = {"Check": self._unary(m.HEALTH_REQUEST, self._health)}
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(NAME, handlers),
                grpc.method_handlers_generic_handler(HEALTH, health),
            )
        )
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address} for gRPC: {error}") from None
        if not port:
            raise OSError(f"cannot listen on {address} for gRPC")
        await self._server.start()
        return int(port)

    async def stop(self, grace: float) -> None:
        """Accept no more calls and finish those that run, at most grace seconds."""
        self._draining = True
        # The server waits for all calls that run, and a stream is one that clients leave open.
        for end in tuple(self._ends):
            end()
        await self._server.stop(grace)

    def _calls(self) -> dict[str, tuple[Message, Answer]]:
        """Name, message of the request, and what makes the response's bytes."""
        service, engine = self._service, self._service.engine

        def named(make: Callable[[str, str], Any]) -> Answer:
            return lambda fields, _: make(fields.get("name", ""), fields.get("version", ""))

        def ready(name: str, version: str) -> bytes:
            return m.READY.encode({"ready": engine.ready(name, version) and not self._draining})

        def memory(kind: str, verb: str) -> tuple[Message, Answer]:
            def answer(fields: dict[str, Any], _: Any) -> bytes:
                service.shared_memory(kind, verb, fields.get("name", ""))
                return b""

            return m.NAME, answer

        calls: dict[str, tuple[Message, Answer]] = {
            "ServerLive": (m.NOTHING, lambda *_: m.LIVE.encode({"live": engine.live()})),
            "ServerReady": (m.NOTHING, lambda *_: m.READY.encode({"ready": engine.ready() and not self._draining})),
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

    def _unary(self, request: Message, answer: Answer) -> Any:
        async def call(data: bytes, context: Any) -> bytes:
            try:
                result = answer(await decode(self._service, request, data, self._limits.json), context)
                return bytes(await result if isinstance(result, Awaitable) else result)
            except ServeError as error:
                await _abort(context, error)
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(call)

    async def _infer(self, data: bytes, context: Any) -> bytes:
        try:
            asked = await decode(self._service, m.INFER_REQUEST, data, self._limits.json)
            fields = await infer(self._service, asked, len(data), context.time_remaining())
            answer = m.INFER_RESPONSE.encode(fields)
            counted = self._unread.add(peer := context.peer(), len(answer))
        except ServeError as error:
            await _abort(context, error)
        if counted:
            # The task of the call, which ends when the answer is taken.
            task = asyncio.current_task()
            assert task
            self._unread.give(peer, counted)
            task.add_done_callback(lambda _: self._unread.remove(peer, counted, counted))
        return answer

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Every request gets one response, in their order; some are computed at the same time.

        During a drain the stream ends when it has answered all that it has read.
        """
        waiting: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(self._limits.pipeline)
        peer = context.peer()
        counts = _Counts()
        given = 0

        async def read() -> None:
            async for data in requests:
                one = asyncio.ensure_future(self._stream_one(data, peer, counts))
                try:
                    await waiting.put(one)
                except asyncio.CancelledError:
                    one.cancel()
                    raise
                if self._draining:
                    break
            await waiting.put(None)

        def end() -> None:
            # Where it is full, the reader has one more request in hand, and ends after that.
            if not waiting.full():
                reader.cancel()
            if waiting.empty():
                waiting.put_nowait(None)

        reader = asyncio.ensure_future(read())
        task: asyncio.Task[bytes] | None = None
        self._ends.add(end)
        try:
            if self._draining:
                end()
            while not (self._draining and waiting.empty()) and (task := await waiting.get()) is not None:
                answer = await task
                self._unread.give(peer, given := counts.pop(task, 0))
                yield answer
                self._unread.remove(peer, given, given)
                given = 0
        finally:
            self._ends.discard(end)
            reader.cancel()
            if task is not None:
                task.cancel()
            while not waiting.empty():
                left = waiting.get_nowait()
                if left is not None:
                    left.cancel()
            counts.over = True
            self._unread.remove(peer, given + sum(counts.values()), given)

    async def _stream_one(self, data: bytes, peer: str, counts: _Counts) -> bytes:
        """The answer; counts: by task, what counts of it until it is taken."""
        head: dict[str, Any] = {}
        try:
            head = await decode(self._service, m.INFER_REQUEST, data, self._limits.json)
            fields = await infer(self._service, head, len(data), None)
            if head.get("parameters", {}).get(WANTS_FINAL, {}).get("bool_param"):
                fields.setdefault("parameters", {})[FINAL] = parameter_field(True)
            answer = m.STREAM_RESPONSE.encode({"infer_response": fields})
            if not counts.over and (counted := self._unread.add(peer, len(answer))):
                counts[asyncio.current_task()] = counted
            return answer
        except ServeError as error:
            known = {k: head[k] for k in ("id", "model_name") if k in head}
            return m.STREAM_RESPONSE.encode({"error_message": str(error), "infer_response": known})

    def _health(self, fields: dict[str, Any], _: Any) -> bytes:
        name = fields.get("service", "")
        if name not in ("", NAME) and not self._service.engine.ready(name):
            raise ServeError(404, f"there is no service '{name}'")
        ready = self._service.engine.ready() and not self._draining
        return m.HEALTH.encode({"status": "SERVING" if ready else "NOT_SERVING"})

    def _index(self, fields: dict[str, Any], _: Any) -> bytes:
        return m.INDEX.encode({"models": self._service.index(fields.get("ready", False))})

    async def _load(self, fields: dict[str, Any], context: Any) -> bytes:
        self._check_control(context)
        await self._service.load(fields.get("model_name", ""), fields.get("parameters"))
        return b""

    async def _unload(self, fields: dict[str, Any], context: Any) -> bytes:
        self._check_control(context)
        await self._service.unload(fields.get("model_name", ""), fields.get("parameters"))
        return b""

    def _trace(self, fields: dict[str, Any], context: Any) -> bytes:
        model = fields.get("model_name") or None
        if model is not None:
            self._service.engine.metadata(model, "")
        changes = {name: value.get("value", []) for name, value in fields.get("settings", {}).items()}
        if changes:
            self._check_control(context)
            self._service.change_trace(model, changes)
        values = self._service.trace.values(model).items()
        return m.TRACE.encode({"settings": {n: {"value": v if isinstance(v, list) else [v]} for n, v in values}})

    def _log(self, fields: dict[str, Any], context: Any) -> bytes:
        changes = {name: next(iter(value.values()), "") for name, value in fields.get("settings", {}).items()}
        if changes:
            self._check_control(context)
            self._service.change_log(changes)
        return m.LOG.encode({"settings": {n: _log_field(v) for n, v in self._service.log.values().items()}})

    def _check_control(self, context: Any) -> None:
        local = context.peer().startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"))
        if not local and not self._service.remote_control:
            raise ServeError(403, "models and settings can be changed from this host only")


def _log_field(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"bool_param": value}
    return {"uint32_param": value} if isinstance(value, int) else {"string_param": value}


async def _abort(context: Any, error: ServeError) -> None:
    """End a call; a client with a retry policy is told when to try again (gRPC's retry design, gRFC A6)."""
    trailing: tuple[tuple[str, str], ...] = ()
    if error.retry_after is not None:
        trailing = (("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))),)
    await context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message, trailing)
