"""TorchScript files (.pt): what every torch since 1.13 loads without the code that made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchpar.serve.errors import ModelError
from torchpar.serve.models.description import INSIDE, Description, parse_description
from torchpar.serve.models.program import Program
from torchpar.serve.tensors import TensorSpec


class TorchScript(Program):
    """A forward runs without Python's lock, so several threads can share one."""

    platform = "pytorch_libtorch"

    def __init__(self, path: str, description: Description) -> None:
        extra = {INSIDE: ""}
        try:
            module = torch.jit.load(path, map_location="cpu", _extra_files=extra)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{path}: not a TorchScript file: {str(error).splitlines()[0]}") from None
        text = extra[INSIDE]
        if text:
            within = parse_description(text if isinstance(text, str) else text.decode(), f"{path}: {INSIDE}")
            description = Description(
                inputs=description.inputs or within.inputs,
                outputs=description.outputs or within.outputs,
                max_batch=within.max_batch if description.max_batch is None else description.max_batch,
            )
        module.eval()
        names = [argument.name for argument in module.forward.schema.arguments[1:]]
        self.inputs = description.inputs or tuple(TensorSpec(name, "FP32", (-1,)) for name in names)
        if len(self.inputs) > len(names):
            raise ModelError(f"{path}: its forward takes {len(names)} arguments, described are {len(self.inputs)}")
        self.outputs = description.outputs or (TensorSpec("OUTPUT__0", "FP32", (-1,)),)
        self.max_batch = description.max_batch
        self._forward = module.forward

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """One forward; a tuple or list of tensors is several outputs."""
        with torch.inference_mode():
            result = self._forward(*inputs)
        return result if isinstance(result, (tuple, list)) else (result,)
