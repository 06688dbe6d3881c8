"""ModelInfer: from a message to the engine's request, and from its response to a message."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.errors import ServeError
from torchpar.serve.grpc.layouts import Layouts, check_raw, read_layout
from torchpar.serve.grpc.messages import INFER_NAMES, INFER_REQUEST, INFER_RESPONSE
from torchpar.serve.grpc.wire import Message, WireError, structure_size
from torchpar.serve.protocol.classes import largest
from torchpar.serve.protocol.elements import data_from_values, pack_bytes
from torchpar.serve.protocol.layout import Input
from torchpar.serve.protocol.service import INLINE, Service
from torchpar.serve.tensors import Data

# Which of a tensor's contents holds elements of which datatype; FP16 and BF16 have none and come raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


# A request, and the outputs of which the largest values are wanted, by name, and how many.
Asked = tuple[Request, Mapping[str, int]]

# A message's bytes are decoded one by one, some hundred nanoseconds each: those with more go to another thread.
DECODED_INLINE = 16 * 1024

_RAW = next(field.number for field in INFER_REQUEST.fields if field.name == "raw_input_contents")


async def decode(service: Service, message: Message, data: bytes | memoryview, limit: int) -> dict[str, Any]:
    """Decodes the fields of a message. Raises ServeError: 400, and 413 where more than `limit` bytes are to be decoded.

    Raw contents of tensors, which are taken as they are, do not count.
    """
    raw = _RAW if message in (INFER_REQUEST, INFER_NAMES) else 0
    try:
        few = structure_size(data, raw, DECODED_INLINE) <= DECODED_INLINE
        return message.decode(data) if few else await _offload(service, _decode_many, message, data, raw, limit)
    except WireError as error:
        raise ServeError(400, f"not the message of this call: {error}") from None


def _decode_many(message: Message, data: bytes | memoryview, raw: int, limit: int) -> dict[str, Any]:
    if structure_size(data, raw, limit) > limit:
        raise ServeError(413, f"the message has more than {limit} bytes besides raw_input_contents")
    return message.decode(data)


async def _offload(service: Service, function: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(service.threads, partial(function, *arguments))


class Inference:
    """Reads requests of ModelInfer and writes the answers, for all calls of one server."""

    def __init__(self, service: Service, limit: int) -> None:
        """limit: bytes of a message besides raw contents."""
        self._service = service
        self._limit = limit
        self._layouts = Layouts()

    def read_known(self, data: bytes | memoryview, remaining: float | None) -> Asked | None:
        """Reads a message of a form that costs next to nothing; None for others. Raises ServeError 400.

        remaining: the seconds that the client waits.
        """
        return self._layouts.read(data, asyncio.get_running_loop().time(), remaining)

    async def read(self, data: bytes | memoryview, remaining: float | None) -> Asked:
        """Reads any message. Raises ServeError."""
        fields = await decode(self._service, INFER_REQUEST, data, self._limit)
        now = asyncio.get_running_loop().time()
        if len(data) > INLINE and (names := _taken_apart(fields)):
            self._service.check_bytes(
                [name for name, datatype in names if datatype == "BYTES"],
                fields.get("model_name", ""),
                fields.get("model_version", ""),
            )
            read: Asked = await _offload(self._service, read_request, fields, now, remaining)
            return read
        return read_request(fields, now, remaining)

    async def names(self, data: bytes | memoryview) -> dict[str, Any]:
        """Returns the id and the model_name of a message; none where they cannot be read."""
        try:
            return await decode(self._service, INFER_NAMES, data, self._limit)
        except ServeError:
            return {}

    async def compute(self, request: Request) -> Response:
        """Computes a request. Raises ServeError; cancelled, it takes the request out of the queue."""
        future: asyncio.Future[Response | ServeError] = asyncio.get_running_loop().create_future()

        def done(outcome: Response | ServeError) -> None:
            if not future.done():
                future.set_result(outcome)

        ticket = self._service.submit(request, done)
        try:
            outcome = await future
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        if isinstance(outcome, ServeError):
            raise outcome
        return outcome

    def write(self, response: Response, classes: Mapping[str, int]) -> list[Any]:
        """Makes the pieces of the answer. Raises ServeError."""
        pieces = None if classes else self._layouts.write(response)
        return [INFER_RESPONSE.encode(response_fields(response, classes))] if pieces is None else pieces


def _taken_apart(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns name and datatype of the inputs that are not taken as they are."""
    raw = "raw_input_contents" in fields
    inputs = [(item.get("name", ""), item.get("datatype", "")) for item in fields.get("inputs", [])]
    return [(name, datatype) for name, datatype in inputs if datatype == "BYTES" or not raw]


def read_request(fields: dict[str, Any], now: float, remaining: float | None) -> Asked:
    """Makes the engine's request of a ModelInferRequest. Raises ServeError 400."""
    items, raw = fields.get("inputs", []), fields.get("raw_input_contents", [])
    if raw:
        check_raw(items, raw)
    layout = read_layout(fields)
    tensors = [
        each.tensor(_contents(each, item.get("contents", {})) if not raw else _only_raw(each, item, raw[i]))
        for i, (each, item) in enumerate(zip(layout.inputs, items))
    ]
    model, version = fields.get("model_name", ""), fields.get("model_version", "")
    return layout.request_of(model, version, tensors, now, remaining), layout.wanted.classes


def _contents(described: Input, contents: dict[str, Any]) -> Data:
    """Reads the data of a tensor that comes as single elements."""
    name, datatype = described.name, described.datatype
    kind = _CONTENTS.get(datatype)
    if kind is None:
        raise ServeError(400, f"input '{name}': {datatype} can only come in raw_input_contents")
    values = contents.get(kind, [])
    if datatype == "BYTES":
        return [bytes(value) for value in values]
    return data_from_values(name, datatype, described.shape, list(values))


def _only_raw(described: Input, item: dict[str, Any], raw: memoryview) -> memoryview:
    if "contents" in item:
        raise ServeError(400, f"input '{described.name}' has contents beside raw_input_contents")
    return raw


def response_fields(response: Response, classes: Mapping[str, int]) -> dict[str, Any]:
    """Makes the fields of a ModelInferResponse."""
    tensors = [largest(t, classes[t.name]) if t.name in classes else t for t in response.outputs]
    fields: dict[str, Any] = {
        "model_name": response.model,
        "model_version": response.version,
        "outputs": [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in tensors],
        "raw_output_contents": [_raw(tensor.data) for tensor in tensors],
    }
    if response.id:
        fields["id"] = response.id
    if response.parameters:
        fields["parameters"] = {name: parameter_field(value) for name, value in response.parameters.items()}
    return fields


def _raw(data: Data) -> Any:
    return pack_bytes(data) if isinstance(data, list) else data


def parameter_field(value: Any) -> dict[str, Any]:
    """Makes an InferParameter."""
    if isinstance(value, bool):
        return {"bool_param": value}
    if isinstance(value, int):
        return {"int64_param": value}
    return {"double_param": value} if isinstance(value, float) else {"string_param": str(value)}
