"""TorchScript is optimized when it is loaded where its description asks for it, for numbers round otherwise then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.serve.engines import ask, request, serving
from tests.serve.models import Counter, described, save_script
from torchpar.serve.errors import ModelError
from torchpar.serve.models.description import Description
from torchpar.serve.models.files import ModelFile
from torchpar.serve.models.kinds import load_program
from torchpar.serve.models.torchscript import TorchScript


class Image(torch.nn.Module):
    """A convolution and what is folded into it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        torch.nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        self.last = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))).mean((2, 3)))


class Slope(torch.nn.Module):
    """Its answer is a derivative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.detach().requires_grad_()
        found = torch.autograd.grad([(y * y).sum()], [y])[0]
        assert found is not None
        return found


class Bumps(torch.nn.Module):
    """It writes through an operator that does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.ops.torchpar_tests.bump(self.count)
        assert isinstance(count, torch.Tensor)
        return x + 0.0 * count.sum()


@pytest.fixture(scope="module")  # what torch has compiled of it outlives a test
def bump() -> Iterator[None]:
    """The operator that `Bumps` has."""
    library = torch.library.Library("torchpar_tests", "FRAGMENT")
    library.define("bump(Tensor x) -> Tensor")

    def add(x: torch.Tensor) -> torch.Tensor:
        x.numpy()[:] += 1  # torch does not count it either
        return x.clone()

    library.impl("bump", add, "CompositeExplicitAutograd")
    yield
    library._destroy()


def kinds(path: Path, *, optimize: bool) -> set[str]:
    """The operators of what is computed."""
    program = TorchScript(str(path), Description(optimize=optimize))
    return {node.kind() for node in program._module.inlined_graph.nodes()}


def test_only_what_asks_for_it_is_optimized(tmp_path: Path) -> None:
    path = save_script(Image(), tmp_path / "m.pt", described(-1, 3, 8, 8))
    assert "aten::batch_norm" in kinds(path, optimize=False)
    assert "aten::batch_norm" not in kinds(path, optimize=True)


@pytest.mark.parametrize("optimize", [False, True])
def test_it_is_batched_and_answers_as_the_model_does(tmp_path: Path, optimize: bool) -> None:
    path = save_script(Image(), tmp_path / "m.pt", described(-1, 3, 8, 8, optimize=optimize))
    torch.manual_seed(1)
    rows = torch.randn(6, 3, 8, 8)
    with torch.inference_mode():
        wanted = Image().eval()(rows)

    async def run() -> None:
        async with serving(path, max_batch=8) as engine:
            assert engine.metadata("m").rowwise
            got = [await answer.values() for answer in ask(engine, [request(row[None]) for row in rows])]
        torch.testing.assert_close(torch.cat([values[0] for values in got]), wanted)

    asyncio.run(run())


@pytest.mark.parametrize(("module", "what"), [(Slope(), "computes derivatives"), (Counter(), "writes to itself")])
def test_where_it_would_change_more_than_roundings_it_is_refused(
    tmp_path: Path, module: torch.nn.Module, what: str
) -> None:
    path = save_script(module, tmp_path / "m.pt", described(-1, 3, optimize=True))
    with pytest.raises(ModelError, match=f"m.pt: it {what}.*optimize"):
        load_program(ModelFile("m", "1", str(path), None))


@pytest.mark.parametrize("shape", [(-1, 3), (-1, -1)])
def test_a_write_that_its_graph_does_not_tell_is_found_before_it_is_a_constant(
    tmp_path: Path, bump: None, shape: tuple[int, ...]
) -> None:
    path = save_script(Bumps(), tmp_path / "m.pt", described(*shape, optimize=True))
    with pytest.raises(ModelError, match=r"m.pt: it writes to itself \(count\).*optimize"):
        load_program(ModelFile("m", "1", str(path), None))


@pytest.mark.parametrize("where", ["beside", "within"])
def test_it_is_for_torchscript_alone(tmp_path: Path, where: str) -> None:
    path = tmp_path / "m.pt2"
    program = torch.export.export(Image().eval(), (torch.zeros(2, 3, 8, 8),))
    text = '{"optimize": true}'
    torch.export.save(program, str(path), extra_files={"torchpar.json": text} if where == "within" else {})
    beside = path.with_suffix(".json")
    beside.write_text(text)
    with pytest.raises(ModelError, match="which is for TorchScript"):
        load_program(ModelFile("m", "1", str(path), str(beside) if where == "beside" else None))
