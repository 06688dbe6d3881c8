"""The engine's promise: each request gets the model's own answer, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from tests.serve.models import mlp, save_script
from torchpar.serve.engine import Engine
from torchpar.serve.errors import ServeError
from torchpar.serve.requests import Request, Response
from torchpar.serve.settings import EngineSettings
from torchpar.serve.tensors import Tensor


def request(value: torch.Tensor, **more: object) -> Request:
    data = value.numpy().tobytes()
    return Request("m", [Tensor("x", "FP32", tuple(value.shape), data)], **more)  # type: ignore[arg-type]


async def answer(engine: Engine, asked: Request) -> Response | ServeError:
    future: asyncio.Future[Response | ServeError] = asyncio.get_running_loop().create_future()
    engine.submit(asked, future.set_result)
    return await asyncio.wait_for(future, 30)


def test_an_answer_is_the_models_own(tmp_path: Path) -> None:
    """One request alone gets bitwise what the module computes."""
    module = mlp()
    save_script(module, tmp_path / "m.pt")
    value = torch.randn(2, 3)

    async def ask() -> Response | ServeError:
        engine = Engine(EngineSettings("m", model=str(tmp_path / "m.pt")))
        await engine.start()
        try:
            assert engine.ready("m") and engine.live()
            return await answer(engine, request(value, id="seven"))
        finally:
            await engine.stop(5)

    got = asyncio.run(ask())
    assert isinstance(got, Response) and got.id == "seven"
    assert bytes(got.outputs[0].data) == module(value).detach().numpy().tobytes()
    assert got.outputs[0].shape == (2, 3)


def test_a_model_that_is_not_there_is_a_404(tmp_path: Path) -> None:
    """Refused at once, without a ticket."""
    save_script(mlp(), tmp_path / "m.pt")

    async def ask() -> None:
        engine = Engine(EngineSettings("m", model=str(tmp_path / "m.pt")))
        await engine.start()
        try:
            with pytest.raises(ServeError) as refused:
                engine.submit(Request("other", []), lambda _: None)
            assert refused.value.status == 404
        finally:
            await engine.stop(5)

    asyncio.run(ask())
