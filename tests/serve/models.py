"""Small models that the tests serve, as files."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def mlp(seed: int = 0, width: int = 16, outputs: int = 3) -> torch.nn.Module:
    """Three features to `outputs` numbers."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Linear(width, outputs)
    ).eval()


DESCRIPTION = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
}


def save_script(module: torch.nn.Module, path: Path, description: object = DESCRIPTION) -> Path:
    """A TorchScript file, described within."""
    extra = {"torchpar.json": json.dumps(description)} if description else {}
    torch.jit.save(torch.jit.script(module), str(path), _extra_files=extra)
    return path
