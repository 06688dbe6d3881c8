"""A program that computes with the number of its rows is found by its graph, however little that changes."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.serve.engines import serving
from tests.serve.models import described, save_script
from torchpar.serve.models.counting import find_count, find_count_exported
from torchpar.serve.models.writes import always


class Added(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :2] * 2e7, x[:, 2:] + x.size(0)], dim=1)


class Divided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) / x.numel()


class Raised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.pow(x, 1.0 / x.shape[0])


class Filled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.full((x.size(0), 1), x.size(0) * 2)


class Returned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((x.size(0), 1), float(x.size(0)))


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / math.sqrt(x.t().size(1))


class Wrapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor(x.size(0))


class Branched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) > 5:
            x = x + 1.0
        return x


class Written(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        if len(x) > 3:
            y[:, 1] = 0.0
        return y


class Counted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n = 0
        for _ in range(x.size(0)):
            n += 1
        return x + n


COUNTING = [Added, Divided, Raised, Filled, Returned, Turned, Wrapped, Branched, Written, Counted]


class Viewed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape
        return (x.view(int(rows / 1), -1) * columns / math.sqrt(x.size(-1))).reshape(rows * columns).view(rows, columns)


class Chosen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[torch.arange(x.size(0)), torch.zeros(x.size(0), dtype=torch.int64)] + torch.zeros(x.shape[0])


class Refused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) == 0:
            raise ValueError("no rows")
        return x.expand(x.size(0), 3)


class Scaled(nn.Module):
    """By the sizes of the other dimensions, wherever they are for now."""

    def forward(self, x: Tensor) -> Tensor:
        n = 1
        for size in x.shape[1:]:
            n *= size
        return (x.t() / x.t().size(0)).t() / n


class Stacked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for i in range(x.size(0)):
            rows.append(x[i] * 2)
        return torch.stack(rows)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, enable_nested_tensor=False
        )
        self.first = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.first(x).unsqueeze(1).repeat(1, 4, 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unsqueeze(1).repeat(1, 5, 1))[0]


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.GroupNorm(1, 2), nn.Upsample(scale_factor=2.0),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.unsqueeze(1))


PLAIN = [Viewed, Chosen, Refused, Scaled, Stacked, Attention, Recurrent, Pooled]

ROWS = torch.ones(4, 3)


def _found(module: Any) -> str:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    loaded = torch.jit.load(file).eval()
    return find_count(loaded, always(loaded))


@pytest.mark.parametrize("model", COUNTING)
def test_what_computes_with_the_number_of_rows_is_found(model: type[nn.Module]) -> None:
    """Nothing is said of how much that changes."""
    assert _found(torch.jit.script(model().eval()))


@pytest.mark.parametrize("model", [Added, Divided, Raised, Filled, Wrapped])
def test_traces_are_looked_at_too(model: type[nn.Module]) -> None:
    """They keep numbers in tensors."""
    assert _found(torch.jit.trace(model().eval(), ROWS))


@pytest.mark.parametrize("model", PLAIN)
def test_shapes_indices_and_loops_are_no_values(model: type[nn.Module]) -> None:
    """Most models ask for their rows somewhere: that must not cost them their batches."""
    assert _found(torch.jit.script(model().eval())) == ""
    assert _found(torch.jit.trace(model().eval(), ROWS, check_trace=False)) == ""


@pytest.mark.skipif(not hasattr(torch, "export"), reason="this torch has no torch.export")
@pytest.mark.parametrize(
    ("model", "counts"),
    [*((model, True) for model in (Added, Divided, Filled, Wrapped)),
     *((model, False) for model in PLAIN if model not in (Viewed, Stacked))],  # these export for one number of rows
)  # fmt: skip
def test_exported_programs_are_looked_at_too(model: type[nn.Module], counts: bool) -> None:
    """Their numbers are formulas."""
    rows = {0: torch.export.Dim("rows", min=2, max=64)}
    exported = torch.export.export(model().eval(), (ROWS,), dynamic_shapes=(rows,))
    assert bool(find_count_exported(exported)) is counts


@pytest.mark.parametrize("backend", ["thread", pytest.param("process", marks=pytest.mark.subprocess)])
def test_it_is_served_unbatched_and_says_why(backend: str, tmp_path: Path, journal: Callable[[], str]) -> None:
    """The line of its source is in the log."""
    save_script(Added(), tmp_path / "m.pt", described(-1, 3))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", backend=backend) as engine:
            assert not engine._repository.get("m").batched

    asyncio.run(run())
    said = journal()
    assert "it computes with the number of its rows (aten::add: " in said
    assert "x[:, 2:] + x.size(0)" in said
