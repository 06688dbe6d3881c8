"""Programs that write to themselves: found out, tried without a trace, and never in two threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.serve.engines import Answer, ask, request, serving
from tests.serve.models import Affine, described, mlp, save_script
from torchpar.serve.models.torchscript import _sums
from torchpar.serve.models.writes import find_write
from torchpar.serve.protocol.triton import model_config
from torchpar.serve.runners.processes import ProcessRunner

X = torch.full((1, 1), 20.0)


class Kept(nn.Module):
    """What the models below write to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1,), 10.0))
        self.table = torch.zeros(64)
        self.length = 0


class Streaming(Kept):
    """x minus a running mean of all calls."""

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        return x - self.mean


class Positions(Kept):
    """x times its length, by a table that is kept from call to call."""

    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) != self.length:
            self.table = torch.full([64], float(x.size(1)))
            self.length = x.size(1)
        y = torch.ones(64, 64) * 0.01
        for _ in range(20):
            y = torch.tanh(y @ y)
        return x * self.table[: x.size(1)] + 0.0 * y.sum()


class InPlace(Kept):
    """A buffer counts."""

    def forward(self, x: Tensor) -> Tensor:
        self.mean.add_(1.0)
        return x - self.mean


class ThroughViews(Kept):
    """The write is to a view of a view, in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        part = self.table[1:3]
        for _ in range(2):
            part = part.view(-1)
            part += 1.0
        return x


class OneElement(Kept):
    """An element is set."""

    def forward(self, x: Tensor) -> Tensor:
        self.table[0] = x.sum()
        return x


class Maybe(Kept):
    """What is written to is chosen by the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.table if bool(x.sum() > 0) else x
        chosen.mul_(2.0)
        return x


class Out(Kept):
    """An argument of a function is its result's place."""

    def forward(self, x: Tensor) -> Tensor:
        torch.add(self.mean, 1.0, out=self.mean)
        return x


class InADictionary(nn.Module):
    """A cache of what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = {"": torch.zeros(1)}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["x"] = x
        return x


class InAList(nn.Module):
    """A history."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


class Within(nn.Module):
    """A part of the model writes."""

    def __init__(self) -> None:
        super().__init__()
        self.part = InPlace()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)  # type: ignore[no-any-return]


class Statistics(Kept):
    """A normalisation that goes on learning."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.mean, self.mean, training=True)


class Gradients(nn.Module):
    """They add up in what is asked for them, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        (x * self.weight).sum().backward()
        return x


class Adjacent(nn.Module):
    """A graph of nodes, most of which are not connected."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("compressed", torch.eye(4).to_sparse_csr())
        self.register_buffer("adjacent", torch.eye(4).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.adjacent, x.t()).t()


class Deep(nn.Module):
    """A long chain of operations in place on what a call makes."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        for _ in range(1500):
            y.mul_(1.0).add_(0.001)
        return y


class DeepAndKept(Kept):
    """The chain ends in what is kept."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.table[:4]
        for _ in range(1500):
            y = y.view(4)
        y.mul_(2.0)
        return x + y


class Seeded(nn.Module):
    """Random numbers, but the same for the same question: as long as nobody else draws from them."""

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(7)
        for _ in range(50):
            x = x + torch.randn(x.size(0), x.size(1))
        return x


class OfItsOwn(nn.Module):
    """It writes, to what it makes and to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True),
            nn.InstanceNorm2d(4, track_running_stats=True), nn.InstanceNorm2d(4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean()
        x = self.layers(x)
        x[0] = 2.0
        places = [x]
        places.append(self.layers[0].weight)
        y = torch.zeros(3)
        for _ in range(3):
            y += 1.0
            y = y.view(-1)
        return x + y.sum()


def _loaded(module: nn.Module, path: Path) -> torch.jit.ScriptModule:
    return torch.jit.load(str(save_script(module, path))).eval()  # type: ignore[no-any-return]


WRITE = [
    Streaming(), Positions(), InPlace(), ThroughViews(), OneElement(), Maybe(), Out(), InADictionary(), InAList(),
    Within(), Statistics(), Gradients(),
]  # fmt: skip
READ = [
    Adjacent(), OfItsOwn(), mlp(), Affine(), nn.BatchNorm1d(3), nn.Embedding(3, 3), nn.EmbeddingBag(4, 3),
    nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, batch_first=True)),
]  # fmt: skip


@pytest.mark.parametrize("module", WRITE, ids=lambda module: type(module).__name__)
def test_a_write_to_what_is_kept_is_found_in_the_graph(tmp_path: Path, module: nn.Module) -> None:
    """Before it has run."""
    assert find_write(_loaded(module, tmp_path / "m.pt"))


@pytest.mark.parametrize("module", READ, ids=lambda module: type(module).__name__)
def test_what_a_call_makes_for_itself_is_no_state(tmp_path: Path, module: nn.Module) -> None:
    """Nor are branches for training."""
    assert find_write(_loaded(module, tmp_path / "m.pt")) == ""


def test_thousands_of_operations_in_a_row_are_followed(tmp_path: Path) -> None:
    """As tracing leaves of a loop."""
    for module, found in ((Deep(), ""), (DeepAndKept(), "what it keeps (aten::mul_)")):
        torch.jit.trace(module, torch.ones(1, 4), check_trace=False).save(tmp_path / "m.pt")
        assert find_write(torch.jit.load(tmp_path / "m.pt")) == found


@pytest.mark.parametrize("of", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc])
def test_sparse_and_quantised_buffers_are_looked_at_too(of: Callable[[Tensor], Tensor]) -> None:
    """What has changed is found, and what has not is not."""
    model = nn.Module()
    model.register_buffer("adjacent", of(torch.eye(4)))
    model.register_buffer("rounded", torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8))
    model.register_buffer("turned", torch.complex(torch.eye(4), torch.eye(4)).conj())
    before = _sums(model)
    assert _sums(model) == before
    model.adjacent.values().mul_(2.0) if model.adjacent.layout is not torch.sparse_coo else model.adjacent.mul_(2.0)
    assert [name for name, now in _sums(model).items() if now != before[name]] == ["adjacent"]


@pytest.mark.subprocess
def test_a_program_that_seeds_shares_random_numbers_with_nobody(tmp_path: Path) -> None:
    """Neither with its own other workers nor with another model."""
    for name in ("a", "b"):
        save_script(Seeded(), tmp_path / "models" / name / "1" / "model.pt", described(-1, 64))

    async def run() -> None:
        async with serving(tmp_path / "models", workers=2) as engine:
            assert all(isinstance(engine._repository.get(name).runner, ProcessRunner) for name in ("a", "b"))
            inputs = [torch.rand(1, 64) for _ in range(40)]
            answers = ask(engine, [request(x, model="ab"[i % 2]) for i, x in enumerate(inputs)])
            for x, answer in zip(inputs, answers, strict=True):
                assert torch.allclose((await answer.values())[0], Seeded()(x), atol=1e-4)

    asyncio.run(run())


@pytest.mark.parametrize("backend", ["auto", "process"])
@pytest.mark.subprocess
def test_the_first_answer_is_that_of_a_model_that_was_never_asked(tmp_path: Path, backend: str) -> None:
    """The trial and the measurements leave no trace; then the mean runs on, from request to request."""
    save_script(Streaming(), tmp_path / "m.pt", described(-1, 1))
    fresh = torch.jit.load(str(tmp_path / "m.pt"))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", backend=backend) as engine:
            assert model_config(engine.metadata("m"))["max_batch_size"] == 0
            for x in (X, X * 2, -X):
                (y,) = await Answer(engine, request(x)).values()
                assert torch.allclose(y, fresh(x))

    asyncio.run(run())


COUNTER = """
import torch

INPUTS = [("x", "FP32", (-1, 1))]
OUTPUTS = [("calls", "INT64", (-1,))]
MAX_BATCH = 1

def load():
    global calls
    calls = 0

def predict(batch):
    global calls
    calls += 1
    return {"calls": torch.full((len(batch["x"]),), calls)}
"""


@pytest.mark.subprocess
def test_a_handler_has_not_been_called_before_its_first_request(tmp_path: Path) -> None:
    """The worker that was tried has ended: another was forked from what load made."""
    (tmp_path / "m.py").write_text(COUNTER)

    async def run() -> None:
        async with serving(tmp_path / "m.py") as engine:
            for calls in (1, 2):
                assert (await Answer(engine, request(X)).values())[0].tolist() == [calls]

    asyncio.run(run())


def test_a_program_that_writes_to_itself_runs_once_at_a_time(tmp_path: Path, journal: Callable[[], str]) -> None:
    """Every answer is that of its own length, and the log says what it writes to."""
    save_script(Positions(), tmp_path / "m.pt", described(-1, -1))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", workers=4) as engine:
            assert model_config(engine.metadata("m"))["instance_group"][0]["count"] == 1
            lengths = [3 + i % 8 for i in range(200)]
            for n, answer in zip(lengths, ask(engine, [request(torch.ones(1, n)) for n in lengths]), strict=True):
                assert (await answer.values())[0].tolist() == [[float(n)] * n]

    asyncio.run(run())
    (line,) = [line for line in journal().splitlines() if "writes to itself" in line]
    assert line.startswith("<4>torchpar: model m version 1: ") and "attribute 'table'" in line


def test_others_are_served_beside_a_program_that_writes_to_itself(tmp_path: Path) -> None:
    """What waits for it holds no worker up."""
    save_script(Positions(), tmp_path / "models" / "state" / "1" / "model.pt", described(-1, -1))
    save_script(Affine(), tmp_path / "models" / "plain" / "1" / "model.pt", described(-1, 3))

    async def run() -> None:
        async with serving(tmp_path / "models", workers=2) as engine:
            for _ in range(20):
                asked = [request(torch.ones(1, 3), model=name) for name in ("state", "state", "plain", "state")]
                got = [(await answer.values())[0].tolist() for answer in ask(engine, asked)]
                assert got == [[[3.0] * 3]] * 4

    asyncio.run(run())


@pytest.mark.subprocess
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_backend_overrules_the_one_worker(tmp_path: Path, backend: str) -> None:
    """It is unbatched all the same."""
    save_script(Streaming(), tmp_path / "m.pt", described(-1, 1))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", backend=backend, workers=2) as engine:
            config = model_config(engine.metadata("m"))
            assert (config["instance_group"][0]["count"], config["max_batch_size"]) == (2, 0)

    asyncio.run(run())


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(torch, "export"), reason="this torch has no torch.export")
def test_an_exported_program_that_changes_a_buffer_is_computed_by_one_process(tmp_path: Path) -> None:
    """Its signature names the buffer."""
    torch.export.save(torch.export.export(InPlace(), (torch.ones(1, 1),)), tmp_path / "m.pt2")

    async def run() -> None:
        async with serving(tmp_path / "m.pt2", workers=2) as engine:
            answers = ask(engine, [request(X)] * 4)
            assert [float((await answer.values())[0]) for answer in answers] == [9.0, 8.0, 7.0, 6.0]

    asyncio.run(run())
