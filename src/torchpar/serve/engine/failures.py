"""Makes the answer to a request of what a model raised, and tells whether every other request would fail so too.

Only its type and place tell. What a handler or the code of a TorchScript file raises is the author's text, of which
nothing follows. What torch itself raises in a program that has no code of its own has a type, and begins as
torch begins it.
"""

from __future__ import annotations

import re

import torch

from torchpar.serve.errors import Lasting, NoInputError, OutputError, ServeError, text_of


def _begins(*begins: str) -> re.Pattern[str]:
    """Makes a pattern of beginnings of torch's messages; the file and line of TorchScript may come before them."""
    return re.compile(rf"^(?:\w+Error: )?(?:{'|'.join(begins)})", re.MULTILINE)


_DEVICE = _begins(
    r"Could not run '[^']+' with arguments from the '(?:CUDA|HIP|XPU|MPS|XLA)",
    r"Cannot initialize \w+ without ATen_",
    r"PyTorch is not linked with support for",
    r"Torch not compiled with",
    r"Found no NVIDIA driver",
    r"No \w+ GPUs are available",
    r"CUDA error: (?:no CUDA-capable device|invalid device ordinal|CUDA driver version is insufficient)",
    r"Expected all tensors to be on the same device",
)
_OPERATOR = _begins(r"Could not run '[^']+' with arguments from the '")
_KIND = _begins(
    r"Expected (?:\d+D|\d+-dimensional|more than \d+D)",
    r"Dimension out of range \(",
    r"Tensors must have same number of",
    r"too many indices for tensor",
    r"number of dims don't match",
    r"permute\(\w+\): input\.dim\(\)",
    r"input must have \d+ dimensions",
    r"(?:batch\d|self|mat\d|vec|tensor) must be a",
    r"mat1 and mat2 must have the same dtype",
    r"expected m1 and m2 to have the same dtype",
    r"expected scalar type \w+ but",
    r"Expected tensor for argument #\d+ '\w+' to have",
    r"Input type \(\S+\) and \w+ type",
    r"tensors used as indices must be",
    r"result type \w+ can't be cast",
    r"\"\w+\" not implemented for '\w+'",
)
_SIZE = _begins(
    r"mat1 and mat2 shapes cannot be multiplied",
    r"size mismatch, got",
    r"Given groups=",
    r"Given normalized_shape=",
)


def failure(error: BaseException, own_code: bool = True) -> ServeError:
    """Makes the answer when a model raises: its last line, which in torch's long messages says what went wrong.

    own_code: what raised may be Python that the model's author wrote.
    """
    if isinstance(error, ServeError):
        return error
    lines = [line.strip() for line in text_of(error).splitlines() if line.strip()]
    # Of an operator that a device does not have, the last line says only where the first of them is.
    said = next((line for line in lines if "Could not run '" in line), lines[-1] if lines else "")
    found = ServeError(500, f"the model failed: {type(error).__name__}: {said[:500]}")
    found.lasting = _lasting(error, own_code)
    return found


def _lasting(error: BaseException, own_code: bool) -> Lasting | None:
    if isinstance(error, OutputError):
        return Lasting.OUTPUT
    if isinstance(error, NoInputError):
        return Lasting.NAME
    # What the code in a TorchScript file raises or asserts is a torch.jit.Error, whatever it was in Python.
    if own_code or isinstance(error, torch.jit.Error):
        return None
    said = text_of(error)
    if isinstance(error, (RuntimeError, AssertionError)) and _DEVICE.search(said):
        return Lasting.DEVICE
    if isinstance(error, RuntimeError) and _OPERATOR.search(said):
        return Lasting.OPERATOR
    if isinstance(error, (RuntimeError, IndexError)):
        return Lasting.KIND if _KIND.search(said) else Lasting.SIZE if _SIZE.search(said) else None
    return None
