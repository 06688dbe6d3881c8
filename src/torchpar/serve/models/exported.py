"""Programs of torch.export (.pt2): a graph that Python executes, with names, datatypes and shapes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchpar.serve.errors import ModelError
from torchpar.serve.models.description import INSIDE, Description, parse_description
from torchpar.serve.models.program import Program, describe
from torchpar.serve.models.values import DATATYPES
from torchpar.serve.tensors import TensorSpec


class Exported(Program):
    """Python walks the graph, so only processes compute at the same time."""

    platform = "pytorch_export"

    def __init__(self, path: str, description: Description, device: str = "cpu") -> None:
        if not hasattr(torch, "export") or not hasattr(torch.export, "load"):
            raise ModelError(f"{path}: torch {torch.__version__} has no torch.export; save the model as TorchScript")
        extra = {INSIDE: ""}
        try:
            program = torch.export.load(path, extra_files=extra)
        except Exception as error:  # whatever an unreadable archive makes torch raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{path}: not a torch.export program that this torch can load: {reason}") from None
        if extra[INSIDE]:
            description = description.over(parse_description(extra[INSIDE], f"{path}: {INSIDE}"))
        nodes = {node.name: node for node in program.graph.nodes}
        signature = program.graph_signature
        found = [_spec(name, nodes[name].meta.get("val")) for name in signature.user_inputs if name in nodes]
        self.inputs = describe(path, [spec for spec in found if spec], description)
        results = [_spec(str(name), nodes[str(name)].meta.get("val")) for name in signature.user_outputs]
        self.outputs = description.outputs or tuple(spec for spec in results if spec)
        self.max_batch = description.max_batch
        self._writes = _find_write(program)
        module = program.module()
        self._module = module if device == "cpu" else module.to(device)

    def writes(self) -> str:
        """What its graph says."""
        return self._writes

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """One call; the results in the order of the graph's outputs."""
        with torch.inference_mode():
            result = self._module(*inputs)
        return list(flatten(result))


def _find_write(program: Any) -> str:
    """The first parameter, buffer or constant that the graph writes to, also through views; "" if none."""
    signature = program.graph_signature
    for name in signature.buffers_to_mutate.values():
        return f"buffer '{name}'"
    given = set(signature.user_inputs)
    kept = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    own: dict[Any, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in given or node.op == "get_attr":
            own[node] = kept.get(node.name, str(node.target))
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        for place, argument in enumerate(schema.arguments):
            value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            names = [own[each] for each in (value if isinstance(value, (list, tuple)) else [value]) if each in own]
            if names and argument.alias_info is not None:
                if argument.alias_info.is_write:
                    return f"'{names[0]}' ({schema.name})"
                own[node] = names[0]
    return ""


def _spec(name: str, value: Any) -> TensorSpec | None:
    if not isinstance(value, torch.Tensor) or value.dtype not in DATATYPES:
        return None
    return TensorSpec(name, DATATYPES[value.dtype], tuple(size if type(size) is int else -1 for size in value.shape))


def flatten(result: Any) -> Sequence[Any]:
    """The tensors in nested tuples, lists and dictionaries, in order."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (tuple, list)):
        return [leaf for part in result for leaf in flatten(part)]
    return [result]
