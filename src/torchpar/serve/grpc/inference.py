"""ModelInfer: from a message to the engine's request, and from its response to a message."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.errors import ServeError
from torchpar.serve.grpc.messages import INFER_REQUEST
from torchpar.serve.grpc.wire import Message, WireError, structure_size
from torchpar.serve.protocol.classes import largest
from torchpar.serve.protocol.elements import data_from_values, pack_bytes
from torchpar.serve.protocol.layout import Input, Wanted, check_number, describe_input, make_layout
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


# A message's bytes are decoded one by one, some hundred nanoseconds each: those with more go to another thread.
DECODED_INLINE = 16 * 1024

_RAW = next(field.number for field in INFER_REQUEST.fields if field.name == "raw_input_contents")


async def decode(service: Service, message: Message, data: bytes | memoryview, limit: int) -> dict[str, Any]:
    """Decodes the fields of a message. Raises ServeError: 400, and 413 where more than `limit` bytes are to be decoded.

    Raw contents of tensors, which are taken as they are, do not count.
    """
    raw = _RAW if message is INFER_REQUEST else 0
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


async def infer(service: Service, fields: dict[str, Any], size: int, remaining: float | None) -> dict[str, Any]:
    """Answers a ModelInferRequest of `size` bytes; remaining is in seconds. Raises ServeError.

    Cancelled, it takes the request out of the queue.
    """
    loop = asyncio.get_running_loop()
    if size > INLINE and (names := _taken_apart(fields)):
        service.check_bytes(
            [name for name, datatype in names if datatype == "BYTES"],
            fields.get("model_name", ""),
            fields.get("model_version", ""),
        )
        request, classes = await _offload(service, read_request, fields, loop.time(), remaining)
    else:
        request, classes = read_request(fields, loop.time(), remaining)
    future: asyncio.Future[Response | ServeError] = loop.create_future()

    def done(outcome: Response | ServeError) -> None:
        if not future.done():
            future.set_result(outcome)

    ticket = service.submit(request, done)
    try:
        outcome = await future
    except asyncio.CancelledError:
        ticket.cancel()
        raise
    if isinstance(outcome, ServeError):
        raise outcome
    return response_fields(outcome, classes)


def _taken_apart(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns name and datatype of the inputs that are not taken as they are."""
    raw = "raw_input_contents" in fields
    inputs = [(item.get("name", ""), item.get("datatype", "")) for item in fields.get("inputs", [])]
    return [(name, datatype) for name, datatype in inputs if datatype == "BYTES" or not raw]


def read_request(
    fields: dict[str, Any], now: float, remaining: float | None
) -> tuple[Request, Mapping[str, int]]:
    """Makes the engine's request, and the outputs of which the largest values are wanted. Raises ServeError 400."""
    items, outputs = fields.get("inputs", []), fields.get("outputs", [])
    raw = fields.get("raw_input_contents", [])
    if raw and len(raw) != len(items):
        raise ServeError(400, f"there are {len(items)} inputs and {len(raw)} raw_input_contents")
    for name, several in (("inputs", items), ("outputs", outputs)):
        check_number(name, several)
    parameters = _parameters(fields)
    inputs = [
        describe_input(item.get("name", ""), item.get("datatype", ""), item.get("shape", ()), _parameters(item))
        for item in items
    ]
    asked = [(item.get("name", ""), _parameters(item)) for item in outputs]
    layout = make_layout(inputs, asked, Wanted(binary=True), fields.get("id", ""), parameters)
    tensors = [
        each.tensor(_contents(each, item.get("contents", {})) if not raw else _only_raw(each, item, raw[i]))
        for i, (each, item) in enumerate(zip(inputs, items))
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


def _parameters(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a request or a tensor by name, of whichever kind. Raises ServeError 400."""
    given = fields.get("parameters", {})
    check_number("parameters", given)
    return {name: next(iter(value.values()), "") for name, value in given.items()}


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
