"""Keeps what messages of ModelInfer have in common: those of a client differ in ids and tensors alone.

A message is its description, maybe an id, and raw contents at its end, which is how clients write it; any other is not
for this module, which says None to it, and grpc/inference.py reads it field by field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, NamedTuple

from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.errors import ServeError
from torchpar.serve.grpc.messages import INFER_REQUEST, INFER_RESPONSE
from torchpar.serve.grpc.wire import Message, WireError, encode_number, varint
from torchpar.serve.http.inference import KEPT, KEPT_SIZE
from torchpar.serve.protocol.layout import Layout, Wanted, check_number, check_text, describe_input, make_layout

# Raw contents of one message, with more of which it is decoded by others.
MOST_RAW = 64


def _key(message: Message, name: str) -> int:
    """Returns the first byte of a field of bytes or text."""
    number = next(field.number for field in message.fields if field.name == name)
    return number << 3 | 2


_ID, _RAW = _key(INFER_REQUEST, "id"), _key(INFER_REQUEST, "raw_input_contents")
_ANSWER_ID, _ANSWER_RAW = (bytes((_key(INFER_RESPONSE, name),)) for name in ("id", "raw_output_contents"))


class Parts(NamedTuple):
    """The parts of a message."""

    description: bytes
    id: memoryview
    raw: list[memoryview]


def cut(data: bytes | memoryview) -> Parts | None:
    """Cuts a ModelInferRequest into its parts; None where it is written otherwise, or they are many or large."""
    view = memoryview(data)
    offset, end, id_at, id_end = 0, len(view), 0, 0
    id_: memoryview = view[:0]
    raw: list[memoryview] = []
    try:
        while offset < end:
            began, key = offset, view[offset]
            size = view[offset + 1]
            offset += 2
            if size > 127:
                size, offset = varint(view, offset - 1)
            start, offset = offset, offset + size
            if key == _RAW:
                if not raw and began - (id_end - id_at) > KEPT_SIZE or len(raw) == MOST_RAW:
                    return None
                if not raw:
                    head = bytes(view[:id_at]) + bytes(view[id_end:began]) if id_end else bytes(view[:began])
                raw.append(view[start:offset])
            elif raw or key & 0x87 != 2 or (key == _ID and id_end) or began - (id_end - id_at) > KEPT_SIZE:
                return None
            elif key == _ID:
                id_at, id_, id_end = began, view[start:offset], offset
    except (IndexError, WireError):
        return None
    return Parts(head, id_, raw) if raw and offset == end else None


def read_layout(fields: dict[str, Any]) -> Layout:
    """Describes the request of a ModelInferRequest. Raises ServeError 400."""
    items, outputs = fields.get("inputs", []), fields.get("outputs", [])
    for name, several in (("inputs", items), ("outputs", outputs)):
        check_number(name, several)
    parameters = _parameters(fields)
    inputs = [
        describe_input(item.get("name", ""), item.get("datatype", ""), item.get("shape", ()), _parameters(item))
        for item in items
    ]
    asked = [(item.get("name", ""), _parameters(item)) for item in outputs]
    return make_layout(inputs, asked, Wanted(binary=True), fields.get("id", ""), parameters)


def check_raw(inputs: Sized, raw: Sized) -> None:
    """Raises ServeError 400 where there are not as many raw contents as inputs."""
    if len(raw) != len(inputs):
        raise ServeError(400, f"there are {len(inputs)} inputs and {len(raw)} raw_input_contents")


def _parameters(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a request or a tensor by name, of whichever kind. Raises ServeError 400."""
    given = fields.get("parameters", {})
    check_number("parameters", given)
    return {name: next(iter(value.values()), "") for name, value in given.items()}


class Layouts:
    """The forms of requests and of answers that one server has seen, of all its clients."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[str, str, Layout]] = {}
        self._heads: dict[Any, list[bytes]] = {}

    def read(
        self, data: bytes | memoryview, now: float, remaining: float | None
    ) -> tuple[Request, Mapping[str, int]] | None:
        """Reads a message; None where others must. Raises ServeError 400.

        now: in the loop's time; remaining: the seconds that the client waits. Returns the request, and the outputs of
        which the largest values are wanted.
        """
        parts = cut(data)
        if parts is None:
            return None
        kept = self._kept.get(parts.description)
        if kept is None:
            try:
                fields = INFER_REQUEST.decode(parts.description)
            except WireError:
                return None
            if any("contents" in item or item.get("datatype") == "BYTES" for item in fields.get("inputs", ())):
                return None
            kept = fields.get("model_name", ""), fields.get("model_version", ""), read_layout(fields)
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[parts.description] = kept
        model, version, layout = kept
        check_raw(layout.inputs, parts.raw)
        tensors = [each.tensor(raw) for each, raw in zip(layout.inputs, parts.raw)]
        request = layout.request_of(model, version, tensors, now, remaining)
        if parts.id:
            try:
                request.id = str(parts.id, "utf-8")
            except UnicodeDecodeError:
                return None
            check_text("'id'", request.id)
        return request, layout.wanted.classes

    def write(self, response: Response) -> list[Any] | None:
        """Makes the pieces of a ModelInferResponse; None where others must."""
        outputs = response.outputs
        if response.parameters:
            return None
        key = (response.model, response.version, *[(o.name, o.datatype, o.shape) for o in outputs])
        kept = self._heads.get(key)
        if kept is None:
            if not outputs or any(output.datatype == "BYTES" for output in outputs):
                return None
            kept = [_ANSWER_RAW + encode_number(len(output.data)) for output in outputs]
            described = [{"name": o.name, "datatype": o.datatype, "shape": o.shape} for o in outputs]
            fields = {"model_name": response.model, "model_version": response.version, "outputs": described}
            kept[0] = INFER_RESPONSE.encode(fields) + kept[0]
            if len(self._heads) >= KEPT:
                self._heads.clear()
            self._heads[key] = kept
        pieces: list[Any] = []
        if response.id:
            text = response.id.encode()
            pieces += _ANSWER_ID, encode_number(len(text)), text
        for head, output in zip(kept, outputs):
            pieces += head, output.data
        return pieces
