"""Loads the program of a file, by its kind."""

from __future__ import annotations

from torchpar.serve.errors import ModelError
from torchpar.serve.models.contents import refuse_other_kinds
from torchpar.serve.models.description import Description, parse_description
from torchpar.serve.models.files import SUFFIXES, ModelFile, check_owner
from torchpar.serve.models.program import Program


def runs_in_threads(path: str) -> bool:
    """Says whether this kind of file computes without Python's lock."""
    return path.endswith(".pt")


def load_program(file: ModelFile, device: str | None = "cpu") -> Program:
    """Loads a model file. Raises ModelError.

    device is torch's name of where it computes; None: it does not, and nothing of it may touch an accelerator.
    """
    program = _load(file, device)
    if not program.inputs:
        raise ModelError(f"{file.path}: it takes no input, and a request is one: no request would be answered")
    return program


def _load(file: ModelFile, device: str | None) -> Program:
    import torch

    check_owner(file.path)
    refuse_other_kinds(file.path)
    # PyPI's torch does not fuse TorchScript on CPUs; Debian 13's does, into code that answers NaN or never ends.
    torch._C._jit_override_can_fuse_on_cpu(False)
    description = Description()
    if file.description:
        check_owner(file.description)
        description = parse_description(_read(file.description), file.description)
    if file.path.endswith(".pt"):
        from torchpar.serve.models.torchscript import TorchScript

        return TorchScript(file.path, description, device or "cpu")
    description.refuse_optimize(file.path)
    if file.path.endswith(".py"):
        from torchpar.serve.models.handler import Handler

        return Handler(file.path, description, device)
    if file.path.endswith(".pt2"):
        from torchpar.serve.models.inductor import Inductor, is_package

        if is_package(file.path):
            return Inductor(file.path, description, device)
        from torchpar.serve.models.exported import Exported

        return Exported(file.path, description, device or "cpu")
    raise ModelError(f"{file.path}: not a model: {', '.join(SUFFIXES)} are")


def _read(path: str) -> str:
    """Reads a description's text."""
    try:
        with open(path, encoding="utf-8-sig") as text:
            return text.read()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path}: it is not UTF-8: save it as that") from None
