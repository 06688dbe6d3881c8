"""Weights in memory that processes share: the same bytes, or none."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.serve.engines import serving
from tests.serve.models import described, mlp
from torchpar.serve.models.weights import Weights


class Tied(torch.nn.Module):
    """Several tensors in one memory, a part of one, and an empty one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(100, 7))
        self.same = self.table
        self.turned = torch.nn.Parameter(self.table.detach().t())
        self.register_buffer("middle", self.table.detach()[10:20, 2:4])
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("count", torch.tensor(3, dtype=torch.int64))

    def all(self) -> list[torch.Tensor]:
        """Its tensors."""
        return [*self.parameters(), *self.buffers()]


@pytest.fixture
def shared() -> Iterator[int]:
    """What the first of two processes has put into shared memory."""
    fd = Weights(Tied().all()).copy()
    yield fd
    os.close(fd)


def test_the_same_weights_are_taken_from_shared_memory(shared: int) -> None:
    """Their values, views and what they have in common stay."""
    tied = Tied()
    before, places = [tensor.clone() for tensor in tied.all()], [tensor.data_ptr() for tensor in tied.all()]
    assert Weights(tied.all()).adopt(shared)
    assert all(map(torch.equal, tied.all(), before))
    moved = [old != tensor.data_ptr() for old, tensor in zip(places, tied.all(), strict=True) if tensor.numel()]
    assert all(moved)
    assert tied.turned.data_ptr() == tied.table.data_ptr() and tied.turned.stride() == (1, 7)
    assert tied.middle.data_ptr() == tied.table.data_ptr() + 4 * (10 * 7 + 2)


@pytest.mark.parametrize("change", ["a value", "a bit", "another size"])
def test_others_are_left_alone(shared: int, change: str) -> None:
    """Also where a checksum might not tell them apart."""
    tied = Tied()
    with torch.no_grad():
        if change == "another size":
            tied.register_buffer("more", torch.zeros(100))
        else:
            tied.table[99, 6] = tied.table[99, 6] + 1 if change == "a value" else -tied.table[99, 6]
    places = [tensor.data_ptr() for tensor in tied.all()]
    assert not Weights(tied.all()).adopt(shared)
    assert [tensor.data_ptr() for tensor in tied.all()] == places


def test_who_writes_to_them_writes_for_itself(shared: int) -> None:
    """Nobody can write to the memory itself."""
    one, other = Tied(), Tied()
    assert Weights(one.all()).adopt(shared) and Weights(other.all()).adopt(shared)
    with torch.no_grad():
        one.table.fill_(5.0)
    assert torch.equal(other.table, Tied().table) and Weights(Tied().all()).adopt(shared)
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(shared, b"x", 0)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(shared, 0)


def test_a_checksum_finds_the_same_weights() -> None:
    assert Weights(Tied().all()).checksum() == Weights(Tied().all()).checksum()
    assert Weights(Tied().all()).checksum() != Weights(Tied(seed=1).all()).checksum()


EXTRA = {"torchpar.json": json.dumps(described(-1, 3))}


@pytest.mark.parametrize("frozen", [True, False])
def test_the_journal_says_of_what_each_process_has_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], frozen: bool
) -> None:
    """What freezing makes of weights are constants of the code, which nobody can exchange."""
    script = torch.jit.script(mlp(width=1 << 17))
    (torch.jit.freeze(script) if frozen else script).save(tmp_path / "m.pt", _extra_files=EXTRA)

    async def run() -> None:
        async def exchange(name: str, fd: int | None) -> int | None:
            if fd is not None:
                os.close(fd)
            return None

        async with serving(tmp_path / "m.pt") as engine:
            await engine.share_weights(exchange)

    asyncio.run(run())
    said = "version 1: each process has its own weights (3 MiB): only those of TorchScript that is not frozen"
    assert (said in capfd.readouterr().err) is frozen
