"""The answer to an inference request: JSON, and bytes after it."""

from __future__ import annotations

import json
from typing import Any

from torchpar.serve.protocol.classes import largest
from torchpar.serve.protocol.elements import pack_bytes, values_from_data
from torchpar.serve.protocol.layout import Wanted
from torchpar.serve.requests import Response


def encode(response: Response, wanted: Wanted) -> tuple[bytes, list[Any]]:
    """The JSON, and the pieces of bytes that follow it, which are none if every output is in the JSON.

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
    return json.dumps(fields, separators=(",", ":")).encode(), pieces
