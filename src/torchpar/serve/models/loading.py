"""From a file to a program: which kind it is, and loading it."""

from __future__ import annotations

from torchpar.serve.errors import ModelError
from torchpar.serve.models.description import Description, parse_description
from torchpar.serve.models.files import ModelFile, check_owner
from torchpar.serve.models.program import Program


def load_program(file: ModelFile, device: str = "cpu") -> Program:
    """Load a model file. Raises ModelError."""
    check_owner(file.path)
    description = Description()
    if file.description:
        check_owner(file.description)
        with open(file.description, encoding="utf-8") as text:
            description = parse_description(text.read(), file.description)
    if file.path.endswith(".pt"):
        from torchpar.serve.models.torchscript import TorchScript

        return TorchScript(file.path, description, device)
    raise ModelError(f"{file.path}: not a model: a TorchScript file's name ends in .pt")
