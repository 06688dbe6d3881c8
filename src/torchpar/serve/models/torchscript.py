"""TorchScript files (.pt): what every torch since 1.13 loads without the code that made them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from torchpar.serve.errors import ModelError
from torchpar.serve.models.description import INSIDE, Description, parse_description
from torchpar.serve.models.program import Program, describe
from torchpar.serve.models.values import bytes_of
from torchpar.serve.models.writes import find_write
from torchpar.serve.tensors import TensorSpec


class TorchScript(Program):
    """A forward runs without Python's lock, so several threads can share one.

    The file knows the names of its inputs. Their datatypes and shapes are in the description, within the file or beside
    it; without one they are guessed from the first layer and tried.
    """

    platform = "pytorch_libtorch"

    def __init__(self, path: str, description: Description, device: str = "cpu") -> None:
        extra: dict[str, Any] = {INSIDE: ""}
        try:
            with warnings.catch_warnings():
                # That TorchScript is deprecated is for who makes models.
                warnings.simplefilter("ignore", DeprecationWarning)
                module = torch.jit.load(path, map_location=device, _extra_files=extra)
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip() or "unreadable").splitlines()[0]
            raise ModelError(f"{path}: not a TorchScript file that this torch can load: {reason}") from None
        text = extra[INSIDE]
        if text:
            within = parse_description(text if isinstance(text, str) else text.decode(), f"{path}: {INSIDE}")
            description = description.over(within)
        module.eval()
        names = [argument.name for argument in module.forward.schema.arguments[1:]]
        first = _first_input(module)
        found = [first(name) if i == 0 else TensorSpec(name, "FP32", (-1,)) for i, name in enumerate(names)]
        self.inputs = describe(path, found, description)
        self.outputs = description.outputs
        self.max_batch = description.max_batch
        self.guessed = not description.inputs
        # nn.Module's own __call__ runs hooks in Python, which a loaded module has none of.
        self._forward = module.forward
        self._module = module
        self._writes = find_write(module)
        self._sums = _sums(module)

    def writes(self) -> str:
        """What its graph says, and what has changed since it was loaded, whatever the graph says."""
        return self._writes or ", ".join(name for name, now in _sums(self._module).items() if now != self._sums[name])

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """One forward. A tuple or list of tensors is several outputs; a dictionary too, in the order of its keys."""
        with torch.inference_mode():
            result = self._forward(*inputs)
        if isinstance(result, dict):
            return list(result.values())
        return result if isinstance(result, (tuple, list)) else (result,)


def _sums(module: Any) -> dict[str, tuple[int, int]]:
    """What tells whether a parameter or a buffer is another: its bytes, added up, and torch's count of writes."""
    found = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        raw = bytes_of(tensor.detach().contiguous()) if tensor.device.type == "cpu" and not tensor.is_quantized else b""
        whole = len(raw) // 8 * 8
        added = int(torch.frombuffer(raw[:whole], dtype=torch.int64).sum()) if whole else 0
        found[name] = (added + sum(raw[whole:]), tensor._version)
    return found


def _first_input(module: Any) -> Any:
    """What the first parameter says of the first input: a linear layer's width, a convolution's channels, an index."""
    parameter = next(iter(module.parameters()), None)
    kind = next((m.original_name for m in module.modules() if m._c.hasattr("weight")), "")

    def spec(name: str) -> TensorSpec:
        if parameter is None:
            return TensorSpec(name, "FP32", (-1,))
        if kind == "Embedding":
            return TensorSpec(name, "INT64", (-1, -1))
        if kind.startswith("Conv"):
            return TensorSpec(name, "FP32", (-1, parameter.shape[1], *(-1 for _ in parameter.shape[2:])))
        return TensorSpec(name, "FP32", (-1, parameter.shape[-1]) if parameter.dim() == 2 else (-1,))

    return spec
