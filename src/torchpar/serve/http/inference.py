"""POST …/infer: from the bytes of a request to the engine, and from its answer to bytes."""

from __future__ import annotations

from functools import partial
from typing import Any

from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.errors import ServeError
from torchpar.serve.http.coding import LEAST, compress, decompress, wanted_coding
from torchpar.serve.http.exchange import BINARY, JSON, Body, Exchange
from torchpar.serve.http.offload import offload, offload_json, offload_large
from torchpar.serve.limits import Limits
from torchpar.serve.protocol import apart
from torchpar.serve.protocol.answer import encode
from torchpar.serve.protocol.layout import Layout, Wanted
from torchpar.serve.protocol.parsing import parse_layout
from torchpar.serve.protocol.service import INLINE, Service
from torchpar.serve.tensors import Tensor, byte_size

# How many layouts and heads of answers are kept, and how long a text is worth keeping.
KEPT = 512
KEPT_SIZE = 4096

ALL_BINARY = Wanted(binary=True)


class Inference:
    """Answers inference requests of all models."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service = service
        self._limits = limits
        self._layouts: dict[bytes, Layout] = {}
        self._heads: dict[Any, tuple[bytes, bytes]] = {}

    def __call__(self, exchange: Exchange, model: str, version: str) -> None:
        """Takes a request; it is answered when the engine has an answer."""
        headers = exchange.headers
        coding = headers.get(b"content-encoding")
        if coding is not None and coding.strip().lower() not in (b"identity", b""):
            name = coding.strip().lower().decode("ascii", "replace")
            offload(
                self._service.threads,
                exchange,
                partial(decompress, exchange.body, name, self._limits.body),
                lambda body: self._take(exchange, model, version, body),
            )
            return
        self._take(exchange, model, version, exchange.body)

    def _take(self, exchange: Exchange, model: str, version: str, body: Body) -> None:
        try:
            length = exchange.headers.get(b"inference-header-content-length")
            if length is None:
                size = len(body)
            else:
                size = int(length) if length.isdigit() and len(length) < 12 else -1
                if size == 0:
                    self._submit(exchange, self._raw(model, version, body), ALL_BINARY, True)
                    return
                if not 0 < size <= len(body):
                    raise ServeError(400, "Inference-Header-Content-Length is not the length of a part of the body")
            if size > self._limits.json:
                raise ServeError(413, f"the request has {size} bytes of JSON; the limit is {self._limits.json}")
            text = memoryview(body)[:size]
            known = bytes(text) if size <= KEPT_SIZE else b""
            layout = self._layouts.get(known)
            if layout is None:
                if size > INLINE:
                    self._service.engine.metadata(model, version)
                    offload_json(
                        self._service,
                        exchange,
                        size,
                        partial(_understand, text, model, version, memoryview(body)[size:], exchange.received),
                        lambda parsed: self._submit(exchange, *parsed),
                    )
                    return
                layout = parse_layout(text)
                if layout.only_bytes and known:
                    if len(self._layouts) >= KEPT:
                        self._layouts.clear()
                    self._layouts[known] = layout
            rest = memoryview(body)[size:]
            if len(rest) > INLINE and (names := layout.bytes_inputs()):
                self._service.check_bytes(names, model, version)
                offload(
                    self._service.threads,
                    exchange,
                    partial(layout.request, model, version, rest, exchange.received),
                    lambda request: self._submit(exchange, request, layout.wanted, layout.uniform),
                )
                return
            self._submit(
                exchange, layout.request(model, version, rest, exchange.received), layout.wanted, layout.uniform
            )
        except ServeError as error:
            exchange.fail(error.status, error.message, error.retry_after)

    def _raw(self, model: str, version: str, body: Body) -> Request:
        """Takes a body without JSON as the only input, as one row."""
        metadata = self._service.engine.metadata(model, version)
        if len(metadata.inputs) != 1:
            count = len(metadata.inputs)
            raise ServeError(400, f"model '{model}' has {count} inputs: a body without JSON can only be one")
        spec = metadata.inputs[0]
        shape = list(spec.shape)
        if shape[:1] == [-1]:
            shape[0] = 1
        if spec.datatype == "BYTES":
            return Request(model, [Tensor(spec.name, "BYTES", tuple(abs(s) for s in shape), [bytes(body)])], version)
        if shape.count(-1) == 1:
            known = byte_size(spec.datatype, [size for size in shape if size != -1])
            if known and len(body) % known == 0:
                shape[shape.index(-1)] = len(body) // known
        if -1 in shape or byte_size(spec.datatype, shape) != len(body):
            raise ServeError(400, f"{len(body)} bytes are no {spec.datatype}{list(spec.shape)} for input '{spec.name}'")
        return Request(model, [Tensor(spec.name, spec.datatype, tuple(shape), memoryview(body))], version)

    def _submit(self, exchange: Exchange, request: Request, wanted: Wanted, uniform: bool) -> None:
        try:
            ticket = self._service.submit(request, partial(self._done, exchange, wanted, uniform))
        except ServeError as error:
            exchange.fail(error.status, error.message, error.retry_after)
        else:
            exchange.cancel = ticket.cancel
        trace = self._service.trace
        if trace.active and trace.wanted(request.model):
            exchange.traced = request.model, request.id, exchange.connection.loop.time()

    def _done(self, exchange: Exchange, wanted: Wanted, uniform: bool, outcome: Response | ServeError) -> None:
        """Takes the engine's answer."""
        if exchange.traced is not None:
            self._trace(exchange, outcome)
        if isinstance(outcome, ServeError):
            exchange.fail(outcome.status, outcome.message, outcome.retry_after)
            return
        accepted = exchange.headers.get(b"accept-encoding")
        if accepted is not None and (coding := wanted_coding(accepted)):
            self._compressed(exchange, wanted, outcome, coding)
            return
        outputs = outcome.outputs
        if not (uniform and wanted.binary) or outcome.id or outcome.parameters:
            self._encoded(exchange, wanted, outcome)
            return
        key = (outcome.model, outcome.version, *((o.name, o.datatype, o.shape) for o in outputs))
        kept = self._heads.get(key)
        if kept is None:
            # The size of BYTES is not known from the shape: it would be another head each time.
            if any(output.datatype == "BYTES" for output in outputs):
                self._encoded(exchange, wanted, outcome)
                return
            text, pieces = encode(outcome, wanted)
            if len(self._heads) >= KEPT:
                self._heads.clear()
            kept = self._heads[key] = answer_head(text, pieces), text
        exchange.send(200, kept[0], kept[1], *[output.data for output in outputs])

    def _encoded(self, exchange: Exchange, wanted: Wanted, response: Response) -> None:
        # What goes out as it is costs nothing, however large.
        size = sum(
            len(output.data)
            for output in response.outputs
            if isinstance(output.data, list) or not wanted.each.get(output.name, wanted.binary)
        )

        if size > INLINE and not exchange.expect(size):
            return

        def send(encoded: tuple[bytes, list[Any]]) -> None:
            text, pieces = encoded
            exchange.send(200, answer_head(text, pieces), text, *pieces)

        work = partial(encode, response, wanted)
        if all(wanted.each.get(output.name, wanted.binary) for output in response.outputs):
            # Elements of BYTES, which are put together.
            offload_large(self._service.threads, exchange, size, work, send)
        else:
            offload_json(self._service, exchange, size, work, send)

    def _compressed(self, exchange: Exchange, wanted: Wanted, response: Response, coding: str) -> None:
        size = sum(len(output.data) for output in response.outputs)
        if not exchange.expect(size):
            return

        def make() -> tuple[bytes, bytes]:
            call = self._service.apart.call
            text, pieces = call(encode, response, wanted) if size > apart.LEAST else encode(response, wanted)
            body = b"".join([text, *pieces])
            if len(body) < LEAST:
                return answer_head(text, pieces), body
            body = compress(body, coding)
            fields = b"Content-Encoding: %b\r\nVary: Accept-Encoding\r\n" % coding.encode()
            return answer_head(text, pieces, len(body)) + fields, body

        offload(self._service.threads, exchange, make, lambda made: exchange.send(200, *made))

    def _trace(self, exchange: Exchange, outcome: Response | ServeError) -> None:
        assert exchange.traced is not None
        model, id_, submitted = exchange.traced
        stamps = {
            "received": exchange.received,
            "submitted": submitted,
            "computed": exchange.connection.loop.time(),
        }
        status = outcome.status if isinstance(outcome, ServeError) else 200
        self._service.trace.trace(model, id_, status, stamps)


def _understand(
    text: bytes | memoryview, model: str, version: str, rest: memoryview, now: float
) -> tuple[Request, Wanted, bool]:
    layout = parse_layout(text)
    return layout.request(model, version, rest, now), layout.wanted, layout.uniform


def answer_head(text: bytes, pieces: list[Any], size: int | None = None) -> bytes:
    """Makes the header fields of an answer; `size` is the body's, where it is not that of the pieces."""
    if size is None:
        size = len(text) + sum(map(len, pieces))
    if not pieces:
        return b"Content-Type: %b\r\nContent-Length: %d\r\n" % (JSON, size)
    return b"Content-Type: %b\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n" % (
        BINARY,
        len(text),
        size,
    )
