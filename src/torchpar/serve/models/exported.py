"""Programs of torch.export (.pt2): a graph that Python executes, with names, datatypes and shapes of its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.models.binding import Argument, bind
from torchpar.serve.models.contents import words_for
from torchpar.serve.models.counting import find_count_exported
from torchpar.serve.models.description import INSIDE, Description, parse_description
from torchpar.serve.models.program import Program, example_of, most_rows
from torchpar.serve.models.results import Results, flatten
from torchpar.serve.models.values import DATATYPES
from torchpar.serve.tensors import TensorSpec

# What a program says when a tensor is not what it was made for: since torch 2.8, and before.
_REFUSALS = ("Guard failed: ", "Expected input at ")


class Exported(Program):
    """Python walks the graph, so only processes compute at the same time."""

    platform = "pytorch_export"

    def __init__(self, path: str, description: Description, device: str = "cpu") -> None:
        program, text = _load(path)
        if text:
            description = description.over(parse_description(text, f"{path}: {INSIDE}"))
            description.refuse_optimize(path)
        nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
        ranges = program.range_constraints
        self._in_spec = program.call_spec.in_spec
        # The leaves of the arguments in order: None for a tensor of a request, else what the program was made with.
        kinds = [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
        self._leaves = [getattr(arg, "value", None) for arg in kinds]
        places = [i for i, arg in enumerate(kinds) if not hasattr(arg, "value")]
        arguments = [_argument(path, kinds[i].name, nodes.get(kinds[i].name), ranges) for i in places]
        keys = [key or arg.name for key, arg in zip(keys_of(self._in_spec, len(kinds)), kinds)]
        listed = {spec.name for spec in description.inputs}
        if not listed <= {argument.name for argument in arguments} and listed <= set(keys):
            # By the keys of dictionaries, which in the graph have their dictionary's name before them.
            arguments = [Argument(keys[i], True, argument.known) for i, argument in zip(places, arguments)]
        self.inputs = bind(path, arguments, description.inputs).inputs
        self._places = places
        self._plain = self._in_spec == plain_spec(len(kinds)) and len(places) == len(kinds)
        values = [getattr(spec.arg, "value", nodes.get(spec.arg.name)) for spec in _user_outputs(program)]
        own = [spec.arg.name for spec in _user_outputs(program)]
        names = Results((), own).names(list(flatten(unflatten(range(len(values)), program.call_spec.out_spec))))
        found = [_spec(name, value, ranges) for name, value in zip(names, values)]
        if description.example is not None:
            self.example = example_of(self.inputs, description.example, path)
        self.outputs = description.outputs or tuple(spec for spec in found if spec)
        self._results = Results([spec.name for spec in description.outputs], own)
        self.max_batch = most_rows(self.inputs, description.max_batch)
        self._writes = _find_write(program)
        self.counts = find_count_exported(program)
        module = program.module()
        self._module = module if device == "cpu" else module.to(device)

    def writes(self) -> str:
        """Names the parameter, buffer or constant that the graph writes to first; "" if none."""
        return self._writes

    def compute(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Runs the program once. Raises ServeError 400 for inputs that it was not made for."""
        try:
            with torch.inference_mode():
                if self._plain:
                    return self._results(self._module(*inputs))
                leaves = list(self._leaves)
                for place, value in zip(self._places, inputs):
                    leaves[place] = value
                arguments, named = unflatten(leaves, self._in_spec)
                return self._results(self._module(*arguments, **named))
        except (AssertionError, RuntimeError) as error:
            said = str(error)
            if said.startswith(_REFUSALS):
                raise ServeError(400, f"the program was not exported for this: {said.splitlines()[0]}") from error
            raise


class _Said(logging.Handler):
    """torch.export raises that it has failed; why is in its log alone."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps it."""
        if record.exc_info and record.exc_info[1]:
            self.text = str(record.exc_info[1])


def _load(path: str) -> tuple[Any, str]:
    """Loads the program, and the description in the file."""
    if not hasattr(torch, "export") or not hasattr(torch.export, "load"):
        raise ModelError(f"{path}: torch {torch.__version__} has no torch.export; save the model as TorchScript")
    extra = {INSIDE: ""}
    said = _Said()
    log = logging.getLogger("torch.export")
    log.addHandler(said)
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # whatever an unreadable archive makes torch raise
        text = said.text or str(error).strip() or type(error).__name__
        # That a library is not there is deep in what it says.
        missing = re.search(r"failed to resolve torch\.ops\S+", text)
        reason = f"{missing[0] if missing else text.splitlines()[0][:500].rstrip('.')}{words_for(text)}"
        raise ModelError(f"{path}: not a torch.export program that this torch can load: {reason}") from None
    finally:
        log.removeHandler(said)
    return program, extra[INSIDE]


def _find_write(program: Any) -> str:
    """Names the first parameter, buffer or constant that the graph writes to, also through views; "" if none."""
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


def unflatten(leaves: Any, spec: Any) -> Any:
    """Nests the leaves of a call's arguments or results again, in order."""
    from torch.utils import _pytree

    return _pytree.tree_unflatten(list(leaves), spec)


def plain_spec(count: int) -> Any:
    """Returns torch's pytree specification of a call with so many plain arguments: none named, none nested."""
    from torch.utils import _pytree

    return _pytree.tree_flatten(((0,) * count, {}))[1]


def keys_of(spec: Any, count: int) -> list[str]:
    """Returns the last key on the way to each leaf of the arguments, "" where there is none or two have the same."""
    keys = [""] * count

    def walk(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, part in value.items():
                walk(part, str(name))
        elif isinstance(value, (tuple, list)):
            for part in value:
                walk(part, key)
        elif type(value) is int:
            keys[value] = key

    walk(unflatten(range(count), spec), "")
    return [key if keys.count(key) == 1 else "" for key in keys]


def _user_outputs(program: Any) -> list[Any]:
    return [spec for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]


def _argument(path: str, name: str, value: Any, ranges: Any) -> Argument:
    known = _spec(name, value, ranges)
    if known is None or not isinstance(value, torch.Tensor):
        what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ModelError(f"{path}: argument '{name}' is a {what}, which no request can carry: write a handler")
    return Argument(name, True, known)


def _spec(name: str, value: Any, ranges: Any) -> TensorSpec | None:
    """Describes a tensor, or a number among the outputs; None for an output that is not there."""
    if isinstance(value, (bool, torch.SymBool)):
        return TensorSpec(name, "BOOL", ())
    if isinstance(value, (int, torch.SymInt)):
        return TensorSpec(name, "INT64", ())
    if isinstance(value, (float, torch.SymFloat)):
        return TensorSpec(name, "FP32", ())
    if not isinstance(value, torch.Tensor) or value.dtype not in DATATYPES:
        return None
    shape = tuple(size if type(size) is int else -1 for size in value.shape)
    return TensorSpec(name, DATATYPES[value.dtype], shape, tuple(_limits(size, ranges) for size in value.shape))


def _limits(size: Any, ranges: Any) -> tuple[int, int | None]:
    """Returns the least and the largest size of a dimension, as the program was exported."""
    if type(size) is int:
        return size, size
    from torch.utils._sympy.value_ranges import bound_sympy

    found = bound_sympy(size.node.expr, ranges)
    low, high = (int(bound) if bound.is_Integer else None for bound in (found.lower, found.upper))
    # Every range begins at 2 where nobody gave one; the program takes 0 and 1 all the same.
    return (low if low and low > 2 else 0), (high if high is not None and high < 1 << 40 else None)
