"""The models that the serving benchmark serves, and how fast they are without a server: run in the torch under test.

    python3 serve_models.py make DIRECTORY
    python3 serve_models.py limit MODEL.pt PROCESSES SECONDS
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Encoder(nn.Module):
    """64 tokens to one vector: 4 layers, 256 wide."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, nhead=4, dim_feedforward=1024, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.tokens(x)).mean(1)


class Block(nn.Module):
    """Two convolutions, and their input on top."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.one_norm = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.two_norm = nn.BatchNorm2d(outputs)
        self.across = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.one_norm(self.one(x)))
        return torch.relu(self.two_norm(self.two(y)) + self.across(x))


class Cnn(nn.Module):
    """An image of 64 by 64 to ten classes: a ResNet of four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, 1, 1)
        widths = [32, 64, 128, 256]
        self.blocks = nn.Sequential(*(Block(a, b, 2) for a, b in zip([32, *widths], widths, strict=False)))
        self.last = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(torch.relu(self.first(x))).mean((2, 3)))


# Rows of the batches of which the limit is measured.
SIZES = (1, 2, 4, 8, 16, 32, 64)

# Name: module, datatype and shape of a row, outputs.
MODELS = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
        ),
        ("FP32", [784], [10]),
    ),
    "encoder": (Encoder, ("INT64", [64], [256])),
    "cnn": (Cnn, ("FP32", [3, 64, 64], [10])),
}


def make(directory: Path) -> None:
    """Write each model as TorchScript, with fixed weights, and a row of input for it as numbers."""
    for name, (build, (datatype, shape, outputs)) in MODELS.items():
        torch.manual_seed(0)
        module = build().eval()
        row = torch.randn(shape) if datatype == "FP32" else torch.randint(1000, shape)
        face = {
            "inputs": [{"name": "x", "datatype": datatype, "shape": [-1, *shape]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, *outputs]}],
            "optimize": True,  # as the other servers' scripts do by themselves, and the limit
        }
        with torch.inference_mode():
            script = torch.jit.trace(module, row[None])
            answer = module(row[None])[0]
        torch.jit.save(script, str(directory / f"{name}.pt"), _extra_files={"torchpar.json": json.dumps(face)})
        about = {"datatype": datatype, "shape": shape, "row": row.flatten().tolist(), "answer": answer.tolist()}
        (directory / f"{name}.json.row").write_text(json.dumps(about))


def limit(path: Path, processes: int, seconds: float) -> dict[str, Any]:
    """Rows per second of so many processes by the rows of a batch, and milliseconds of a single row in one of them."""
    torch.set_num_threads(1)
    about = json.loads(path.with_suffix(".json.row").read_text())
    dtype = torch.float32 if about["datatype"] == "FP32" else torch.int64
    row = torch.tensor(about["row"], dtype=dtype).reshape(1, *about["shape"])
    model = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(str(path)).eval()))
    together = multiprocessing.get_context("fork").Barrier(processes)

    def compute(size: int) -> list[float]:
        """Seconds of each batch that began within the time."""
        batch = row.expand(size, *about["shape"]).contiguous()
        times = [time.monotonic()]
        with torch.inference_mode():
            while len(times) < 3 or times[-1] < times[0] + seconds / (2 * len(SIZES)):
                model(batch)
                times.append(time.monotonic())
        return [after - before for before, after in itertools.pairwise(times)]

    def compute_each(results: Any) -> None:
        for size in SIZES:
            compute(size)  # warm: it is made for each shape anew
            together.wait()
            times = compute(size)
            results.put((size, size * len(times) / sum(times)))

    single = statistics.median(compute(1))
    results: Any = multiprocessing.get_context("fork").Queue()
    # Forks that share the weights, as the server's processes do.
    start = multiprocessing.get_context("fork").Process
    workers = [start(target=compute_each, args=(results,)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    rates = dict.fromkeys(SIZES, 0.0)
    for _ in range(processes * len(SIZES)):
        size, rate = results.get(timeout=120)
        rates[size] += rate
    for worker in workers:
        worker.join()
    return {"rows_per_second": rates, "single_ms": 1e3 * single}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        print(json.dumps(limit(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
