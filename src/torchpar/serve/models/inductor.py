"""AOTInductor packages (.pt2): a model compiled to machine code, which holds Python's lock while it computes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import torch

from torchpar.serve.errors import ModelError
from torchpar.serve.models.contents import words_for
from torchpar.serve.models.description import Description
from torchpar.serve.models.program import Program, example_of
from torchpar.serve.models.results import Results


class Inductor(Program):
    """Nothing in the package names its inputs: the description must."""

    platform = "pytorch_aotinductor"

    def __init__(self, path: str, description: Description, device: str | None = "cpu") -> None:
        load = _loader()
        if load is None:
            raise ModelError(f"{path}: torch {torch.__version__} has no AOTInductor packages")
        if not description.inputs:
            raise ModelError(
                f"{path}: a compiled package does not say what its inputs are: describe them in a .json file beside it"
            )
        self.inputs = description.inputs
        if description.example is not None:
            self.example = example_of(self.inputs, description.example, path)
        self.outputs = description.outputs
        self._results = Results([spec.name for spec in self.outputs])
        self.max_batch = description.max_batch
        if device is None:
            return
        try:
            self._run = load(path)
        except Exception as error:  # the compiled code's loader raises what it likes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + words_for(str(error))
            raise ModelError(f"{path}: not an AOTInductor package that this torch can load: {reason}") from None

    def run(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """One call."""
        with self.mode():
            return self._results(self._run(*inputs))


def _loader() -> Any:
    """torch's loader of packages: its name since 2.6, and before that."""
    try:
        import torch._inductor as inductor

        if hasattr(inductor, "aoti_load_package"):
            return inductor.aoti_load_package
        from torch._inductor.package import load_package
    except ImportError:
        return None
    return load_package


def is_package(path: str) -> bool:
    """Whether a .pt2 file holds compiled code. Raises ModelError for what is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/aotinductor/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a .pt2 file: {error}") from None
