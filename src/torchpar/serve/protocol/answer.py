"""The answer to an inference request: JSON, and bytes after it."""

from __future__ import annotations

import json
import math
from typing import Any

from torchpar.serve.engine.requests import Response
from torchpar.serve.errors import ServeError
from torchpar.serve.protocol.classes import largest
from torchpar.serve.protocol.elements import pack_bytes, values_from_data
from torchpar.serve.protocol.layout import Wanted


def encode(response: Response, wanted: Wanted) -> tuple[bytes, list[Any]]:
    """Makes the JSON, and the pieces of bytes that follow it, which are none if every output is in the JSON.

    Raises ServeError for outputs that JSON cannot hold.
    """
    outputs: list[dict[str, Any]] = []
    pieces: list[Any] = []
    for tensor in response.outputs:
        if tensor.name in wanted.classes:
            tensor = largest(tensor, wanted.classes[tensor.name])
        item: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if wanted.each.get(tensor.name, wanted.binary):
            data = pack_bytes(tensor.data) if isinstance(tensor.data, list) else tensor.data
            item["parameters"] = {"binary_data_size": len(data)}
            pieces.append(data)
        else:
            item["data"] = values_from_data(tensor)
        outputs.append(item)
    fields: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        fields["id"] = response.id
    if response.parameters:
        fields["parameters"] = response.parameters
    fields["outputs"] = outputs
    try:
        text = _render(fields)
    except ValueError:
        for item in outputs:
            if "data" in item:
                item["data"] = _worded(item["name"], item["data"])
        text = _render(fields)
    return text, pieces


def _render(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()


def _worded(name: str, values: list[Any]) -> list[Any]:
    """Values with null for NaN, as which clients read it; an infinity would be read as NaN, too."""
    if math.inf in values or -math.inf in values:
        raise ServeError(400, f"output '{name}' has infinities: JSON cannot hold them; ask for binary data")
    return [value if value == value else None for value in values]
