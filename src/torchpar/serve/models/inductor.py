"""AOTInductor packages (.pt2): a model compiled to machine code, which holds Python's lock while it computes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from torchpar.contract.journal import Priority, say
from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.models.binding import Argument, bind, is_numbered
from torchpar.serve.models.compiled import Made, read_made
from torchpar.serve.models.contents import words_for
from torchpar.serve.models.description import Description
from torchpar.serve.models.exported import keys_of, plain_spec, unflatten
from torchpar.serve.models.program import Program, example_of, most_rows
from torchpar.serve.models.results import Results
from torchpar.serve.models.values import DTYPES
from torchpar.serve.tensors import TensorSpec


class Inductor(Program):
    """Within what its generated code says. Nothing in the package names its inputs: the description must."""

    platform = "pytorch_aotinductor"

    def __init__(self, path: str, description: Description, device: str | None = "cpu") -> None:
        load = _loader()
        if load is None:
            raise ModelError(f"{path}: torch {torch.__version__} has no AOTInductor packages")
        if not description.inputs:
            raise ModelError(
                f"{path}: a compiled package does not say what its inputs are: describe them in a .json file beside it"
            )
        made = read_made(path)
        self._tree = _tree_of(made)
        inputs = description.inputs
        if made is not None:
            inputs = bind(path, _arguments(made, self._tree, description), inputs).inputs
        self._equal = made.equal if made else None
        self._writes = made.writes if made else ""
        if self._equal is None:
            inputs = _all_fixed(path, inputs, description.example)
            if device is not None:
                say(
                    f"{path}: it does not tell what it was compiled for, and gets only what is described, unbatched",
                    Priority.WARNING,
                )
        self.inputs = inputs
        if description.example is not None:
            self.example = example_of(self.inputs, description.example, path)
        self.outputs = description.outputs
        self._results = Results([spec.name for spec in self.outputs])
        self.max_batch = most_rows(self.inputs, description.max_batch)
        self._dtypes = [DTYPES.get(spec.datatype) for spec in self.inputs]
        if device is None:
            return
        try:
            self._run = load(path)
        except Exception as error:  # the compiled code's loader raises what it likes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + words_for(str(error))
            raise ModelError(f"{path}: not an AOTInductor package that this torch can load: {reason}") from None

    def writes(self) -> str:
        """Names the constants that the generated code writes to; "" if none is known."""
        return self._writes

    def compute(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Runs the code once. Raises ServeError 400 for inputs it was not compiled for: the code does not look."""
        for spec, dtype, value in zip(self.inputs, self._dtypes, inputs):
            if value.dtype != dtype or not spec.fits(value.shape):
                raise ServeError(400, f"input '{spec.name}': the package takes {spec}, not shape {list(value.shape)}")
        for places in self._equal or ():
            if len({inputs[i].shape[place] for i, place in places}) > 1:
                said = ", ".join(f"'{self.inputs[i].name}' {inputs[i].shape[place]} ({place})" for i, place in places)
                raise ServeError(400, f"the package takes inputs of one size in these dimensions, not {said}")
        with torch.inference_mode():
            if self._tree is None:
                return self._results(self._run(*inputs))
            # What was left out when it was compiled is in the tree, and is nothing in the call.
            leaves = [*inputs, *[None] * (self._tree.num_leaves - len(inputs))]
            arguments, named = unflatten(leaves, self._tree)
            return self._results(self._run(*arguments, **named))


def _tree_of(made: Made | None) -> Any:
    """Returns torch's pytree specification of a call's arguments; None where the inputs simply follow each other."""
    if made is None or not made.tree:
        return None
    from torch.utils import _pytree

    tree = _pytree.treespec_loads(made.tree)
    return None if tree == plain_spec(len(made.inputs)) else tree


def _arguments(made: Made, tree: Any, description: Description) -> list[Argument]:
    """Returns the inputs by the keys that a call has for them; those without a key as they are described, in order."""
    listed = [spec.name for spec in description.inputs]
    keys = keys_of(tree, tree.num_leaves) if tree is not None else []
    if len(keys) > len(made.inputs):
        keys = [key for key in keys if not key or key in listed]
    if len(keys) != len(made.inputs):
        keys = [""] * len(made.inputs)
    rest = iter([name for name in listed if name not in keys and not is_numbered(name)])
    names = [key or next(rest, f"INPUT__{i}") for i, key in enumerate(keys)]
    return [Argument(name, True, replace(spec, name=name)) for name, spec in zip(names, made.inputs)]


def _all_fixed(path: str, inputs: Sequence[TensorSpec], example: Any) -> tuple[TensorSpec, ...]:
    """Returns the inputs with sizes that somebody vouches for: as described, else the example's. Raises ModelError."""
    if example is not None:
        shapes = [tensor.shape for tensor in example_of(inputs, example, path)]
        inputs = [replace(spec, shape=shape) for spec, shape in zip(inputs, shapes)]
    for spec in inputs:
        if spec.datatype not in DTYPES:
            raise ModelError(f"{path}: input '{spec.name}' is described as {spec}, which no compiled package takes")
        if -1 in spec.shape:
            raise ModelError(
                f"{path}: it does not tell what it was compiled for, and input '{spec.name}' is described as {spec}:"
                " compile it with a newer torch, or describe the sizes with which it was exported"
            )
    return tuple(inputs)


def _loader() -> Any:
    """Returns torch's loader of packages: by its name since 2.6, or the one before."""
    try:
        import torch._inductor as inductor

        if hasattr(inductor, "aoti_load_package"):
            return inductor.aoti_load_package
        from torch._inductor.package import load_package
    except ImportError:
        return None
    return load_package


def is_package(path: str) -> bool:
    """Says whether a .pt2 file holds compiled code. Raises ModelError where it is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/aotinductor/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a .pt2 file: {error}") from None
