"""POST /predict and /predict/MODEL: plain JSON in and out, for people and for programs without a client library.

The body is the model's input, or an object with an input under each name. Shapes are those of the arrays; where the
first dimension is the rows, a value without it is one row, and the answer comes without it too.

    $ curl -d '[1.0, 2.0, 3.0]' http://localhost:8000/predict
    {"outputs": {"y": [0.25, 0.5, 0.25]}}
"""

from __future__ import annotations

import html
import json
import math
from functools import partial
from typing import Any, Optional, Union
from urllib.parse import unquote_to_bytes

from torchpar.serve.engine.metadata import READY
from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.errors import ServeError
from torchpar.serve.http.exchange import HTML, JSON, Body, Exchange
from torchpar.serve.http.offload import offload_json
from torchpar.serve.limits import Limits
from torchpar.serve.protocol.elements import data_from_values, flatten, nested, values_from_data
from torchpar.serve.protocol.layout import check_shape
from torchpar.serve.protocol.parsing import parse_json
from torchpar.serve.protocol.service import INLINE, Service
from torchpar.serve.tensors import Tensor, TensorSpec

FLOATS = ("FP16", "BF16", "FP32", "FP64")
# A larger whole number is a name rather than a measurement: rounded, it is another's.
EXACT = 1 << 53

# The text of a page's form, None for others; the inputs, and whether they have the rows dimension, or what is wrong.
Understood = tuple[Optional[bytes], Union[tuple[list[Tensor], bool], ServeError]]


class Predict:
    """Answers /predict; for a form of a web page the answer is a page."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    def __call__(self, exchange: Exchange, model: str) -> None:
        """Takes a request; it is answered when the engine has an answer."""
        body = exchange.body
        form = exchange.headers.get(b"content-type", b"").startswith(b"application/x-www-form-urlencoded")
        # curl -d says it sends a form: what begins like JSON is JSON.
        form = form and body.startswith(b"input=")
        try:
            if b"content-encoding" in exchange.headers:
                raise ServeError(415, "/predict takes plain JSON, not compressed")
            # A form's bytes may be percent signs and two digits each.
            if len(body) > self._limits.json * (3 if form else 1):
                raise ServeError(413, f"the JSON has {len(body)} bytes; the limit is {self._limits.json}")
            model = model or self._only_model()
            metadata = self._service.engine.metadata(model, "")
        except ServeError as error:
            self._fail(exchange, _form_text(body[:INLINE]) if form else None, error)
            return
        work = partial(_understand, body, form, metadata.inputs, self._limits.json)
        offload_json(self._service, exchange, len(body), work, partial(self._submit, exchange, model))

    def _submit(self, exchange: Exchange, model: str, understood: Understood) -> None:
        shown, outcome = understood
        if isinstance(outcome, ServeError):
            self._fail(exchange, shown, outcome)
            return
        inputs, whole = outcome
        try:
            ticket = self._service.submit(Request(model, inputs), partial(self._done, exchange, shown, whole))
        except ServeError as error:
            self._fail(exchange, shown, error)
        else:
            exchange.cancel = ticket.cancel

    def _only_model(self) -> str:
        names = sorted({entry.name for entry in self._service.engine.index() if entry.state == READY})
        if len(names) != 1:
            raise ServeError(400, f"name a model: POST /predict/MODEL; there are: {', '.join(names) or 'none'}")
        return names[0]

    def _done(self, exchange: Exchange, shown: bytes | None, whole: bool, outcome: Response | ServeError) -> None:
        fail = partial(self._fail, exchange, shown)
        if isinstance(outcome, ServeError):
            fail(outcome)
            return

        def send(message: bytes) -> None:
            if shown is not None:
                self._show(exchange, shown, 200, message.decode())
            else:
                exchange.respond(200, JSON, message)

        size = sum(len(tensor.data) for tensor in outcome.outputs)
        if size > INLINE and not exchange.expect(size):
            return
        offload_json(self._service, exchange, size, partial(_answer, outcome, whole), send, fail)

    def _fail(self, exchange: Exchange, shown: bytes | None, error: ServeError) -> None:
        if shown is not None:
            self._show(exchange, shown, error.status, error.message)
        else:
            exchange.fail(error.status, error.message, error.retry_after)

    def _show(self, exchange: Exchange, text: bytes, status: int, message: str) -> None:
        shown = html.escape(text.decode("utf-8", "replace"))
        body = (
            "<!doctype html><html lang=en><meta charset=utf-8><title>torchpar: answer</title>"
            f"<h1>{'Answer' if status == 200 else f'Error {status}'}</h1>"
            f"<pre>{html.escape(message)}</pre><h2>to</h2><pre>{shown}</pre><p><a href=/>Back</a>"
        )
        exchange.respond(status, HTML, body.encode(), b"Content-Security-Policy: default-src 'none'")


def _form_text(body: Body) -> bytes:
    return unquote_to_bytes(bytes(body[6:]).partition(b"&")[0].replace(b"+", b" "))


def _understand(body: Body, form: bool, specs: tuple[TensorSpec, ...], limit: int) -> Understood:
    text = _form_text(body) if form else bytes(body)
    shown = text if form else None
    if len(text) > limit:
        return shown, ServeError(413, f"the JSON has {len(text)} bytes; the limit is {limit}")
    try:
        return shown, read_inputs(parse_json(text), specs, limit)
    except ServeError as error:
        return shown, error


def _answer(response: Response, whole: bool) -> bytes:
    outputs = {tensor.name: _plain(tensor, whole) for tensor in response.outputs}
    return json.dumps({"outputs": outputs}, ensure_ascii=False, allow_nan=False).encode()


def read_inputs(
    value: Any, specs: tuple[TensorSpec, ...], limit: int = Limits.json
) -> tuple[list[Tensor], bool]:
    """Reads the tensors in a JSON value; says too whether they have the rows dimension themselves. Raises ServeError.

    limit: bytes of a single value when it is repeated.
    """
    names = [spec.name for spec in specs]
    if not (isinstance(value, dict) and value.keys() <= set(names)):
        if len(specs) != 1:
            raise ServeError(400, f"the JSON is not an object with the model's inputs: {', '.join(names)}")
        value = {specs[0].name: value}
    missing = [name for name in names if name not in value]
    if missing:
        raise ServeError(400, f"there is no '{missing[0]}' in the JSON")
    read = [(spec, _read(spec, value[spec.name])) for spec in specs]
    # Rows are what a request chooses the number of; where there are none, a first dimension of 1 may be left out.
    first = -1 if any(spec.shape[:1] == (-1,) for spec in specs) else 1
    counted = [(spec, tensor) for spec, tensor in read if spec.shape[:1] == (first,)]
    arrays = [(spec, tensor) for spec, tensor in counted if tensor.shape]
    wholes = {len(tensor.shape) != len(spec.shape) - 1 for spec, tensor in arrays}
    if len(wholes) > 1:
        raise ServeError(400, "some inputs have a dimension for rows and others have not")
    rows = arrays[0][1].shape[0] if wholes == {True} else 1
    for spec, tensor in read:
        _add_rows(spec, tensor, rows if spec.shape[:1] == (-1,) else 1, limit)
    return [tensor for _, tensor in read], wholes == {True} or not counted


def _read(spec: TensorSpec, value: Any) -> Tensor:
    """Makes the tensor, of the shape that the value has."""
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if not inner:
            break
        inner = inner[0]
    if isinstance(inner, dict):
        raise ServeError(400, f"input '{spec.name}' is an object, not an array")
    check_shape(spec.name, shape)
    flat = flatten(spec.name, shape, value) if isinstance(value, list) else [value]
    tensor = Tensor(spec.name, spec.datatype, tuple(shape), data_from_values(spec.name, spec.datatype, shape, flat))
    if spec.datatype in FLOATS and max(map(abs, flat), default=0) > EXACT:
        for given, taken in zip(flat, values_from_data(tensor)):
            if type(given) is int and abs(given) > EXACT and given != taken:
                raise ServeError(400, f"input '{spec.name}': {given!r:.40} is an {spec.datatype} only when rounded")
    return tensor


def _add_rows(spec: TensorSpec, tensor: Tensor, rows: int, limit: int) -> None:
    """Gives the tensor of one row its dimension for rows; a single value, for all that a row has, is every row's."""
    if spec.shape[:1] not in ((-1,), (1,)):
        return
    if not tensor.shape and set(spec.shape[1:]) <= {1}:
        size = len(tensor.data[0]) + 4 if isinstance(tensor.data, list) else len(tensor.data)
        if size * rows > limit:
            raise ServeError(413, f"input '{tensor.name}' for {rows} rows is larger than {limit} bytes")
        tensor.shape = (rows, *spec.shape[1:])
        tensor.data = tensor.data * rows if isinstance(tensor.data, list) else bytes(tensor.data) * rows
    elif len(tensor.shape) == len(spec.shape) - 1:
        tensor.shape = (1, *tensor.shape)


def _plain(tensor: Tensor, whole: bool) -> Any:
    """Makes nested arrays. A number for which JSON has no word, NaN or an infinity, becomes null."""
    values = values_from_data(tensor)
    if tensor.datatype in FLOATS:
        values = [value if math.isfinite(value) else None for value in values]
    result = nested(values, tensor.shape)
    return result if whole or tensor.shape[:1] != (1,) else result[0]
