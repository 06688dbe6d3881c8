"""Small models that the tests serve, as files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch


def mlp(seed: int = 0, width: int = 16) -> torch.nn.Module:
    """Three features to three numbers."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Linear(width, 3)).eval()


class Affine(torch.nn.Module):
    """2x + k: exact, whatever is beside a row, and for any shape."""

    def __init__(self, k: float = 1.0) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * x + self.k


class Slow(torch.nn.Module):
    """Its input, after so many rounds of work as its largest number says (a hundred: some milliseconds)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounds = int(x.max())
        y = torch.ones(64, 64)
        for _ in range(rounds):
            y = torch.tanh(y @ y)
        return x + 0.0 * y.sum()


class Lookup(torch.nn.Module):
    """A table of eight entries: an index beyond fails."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(8, 2)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.table(index)


class Total(torch.nn.Module):
    """One number for all rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


class Counter(torch.nn.Module):
    """Its input, and a count of its runs in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.count: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x + 0.0 * self.count


class Neighbours(torch.nn.Module):
    """Each row is divided by the sum over rows, as a softmax along the wrong dimension does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, dim=0)


class SumAndDifference(torch.nn.Module):
    """Two inputs, two outputs."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


def described(*shape: int, datatype: str = "FP32", names: str = "x", **more: object) -> dict[str, object]:
    """A description whose inputs are all alike."""
    return {"inputs": [{"name": n, "datatype": datatype, "shape": list(shape)} for n in names.split()], **more}


def save_script(module: torch.nn.Module, path: Path, description: dict[str, object] | None = None) -> Path:
    """A TorchScript file, described within."""
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = {"torchpar.json": json.dumps(description)} if description else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), str(path), _extra_files=extra)
    return path
