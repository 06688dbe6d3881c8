"""The engine's promise: each request gets the model's own answer, once."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.engines import Answer, ask, ask_for_a_moment, busy, request, serving, value
from tests.serve.models import (
    Affine,
    Lookup,
    Neighbours,
    Slow,
    SumAndDifference,
    Total,
    described,
    mlp,
    save_script,
)
from torchpar.serve.engine import loading
from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.engine.curve import Curve
from torchpar.serve.engine.engine import Engine
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.probe import Probe
from torchpar.serve.engine.requests import Request, Response
from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.protocol.triton import model_config, model_statistics, rows_of_a_request
from torchpar.serve.runners.runner import ThreadRunner
from torchpar.serve.tensors import Tensor, TensorSpec

ROWS = described(-1, 3)
several = settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def test_a_request_alone_gets_bitwise_what_the_model_computes(tmp_path: Path) -> None:
    """And its id back."""
    module = mlp()
    save_script(module, tmp_path / "m.pt", ROWS)
    x = torch.randn(5, 3)

    async def run() -> Response | ServeError:
        async with serving(tmp_path / "m.pt") as engine:
            assert engine.ready("m") and engine.ready() and engine.live()
            return await Answer(engine, request(x, id="seven")).get()

    got = asyncio.run(run())
    assert isinstance(got, Response) and (got.id, got.model, got.version) == ("seven", "m", "1")
    assert torch.equal(value(got.outputs[0]), module(x)) and got.outputs[0].name == "OUTPUT__0"


@several
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=30), st.integers(1, 3))
def test_every_mix_of_rows_and_arrivals_gets_the_models_answers(
    tmp_path: Path, arrivals: list[tuple[int, int]], workers: int
) -> None:
    """Within float tolerance for a model whose sums depend on the batch's size."""
    module = mlp()
    save_script(module, tmp_path / "m.pt", ROWS)
    inputs = [torch.randn(rows, 3) for rows, _ in arrivals]

    async def run() -> None:
        async with serving(tmp_path / "m.pt", workers=workers) as engine:
            answers = []
            for (_, turns), x in zip(arrivals, inputs, strict=True):
                answers.append(Answer(engine, request(x)))
                for _ in range(turns):
                    await asyncio.sleep(0)
            for x, answer in zip(inputs, answers, strict=True):
                (y,) = await answer.values()
                assert torch.allclose(y, module(x), rtol=1e-5, atol=1e-6)

    asyncio.run(run())


@several
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_shapes_are_kept_apart_and_rows_in_order(tmp_path: Path, kinds: list[tuple[int, int, int]]) -> None:
    """Exact for a model without sums, with any mix of shapes and of rows, none included."""
    save_script(Affine(), tmp_path / "m.pt", described(-1, -1))
    inputs = [torch.randn(rows, width) for rows, width, _ in kinds]

    async def run() -> None:
        async with serving(tmp_path / "m.pt", workers=2) as engine:
            asked = [request(x, priority=kind[2]) for x, kind in zip(inputs, kinds, strict=True)]
            for x, answer in zip(inputs, ask(engine, asked), strict=True):
                assert torch.equal((await answer.values())[0], 2 * x + 1)

    asyncio.run(run())


def test_requests_of_one_turn_are_one_batch(tmp_path: Path) -> None:
    """Rows are counted: three requests, six rows, one execution."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=64) as engine:
            answers = ask(engine, [request(torch.ones(rows, 3)) for rows in (1, 2, 3)])
            for answer in answers:
                await answer.values()
            stats = model_statistics(*engine.statistics("m")[0])
            assert (stats["inference_count"], stats["execution_count"]) == (6, 1)
            assert stats["inference_stats"]["success"]["count"] == 3
            assert stats["batch_stats"][0]["batch_size"] == 6
            ((_, _, counters, waiting),) = engine.counters()
            assert counters.total_seconds.counts and sum(counters.total_seconds.counts) == 3 and waiting == 0

    asyncio.run(run())


def test_max_batch_is_never_exceeded(tmp_path: Path) -> None:
    """Batches of four rows at most; a request of more is refused at once."""
    save_script(Affine(), tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=4) as engine:
            for answer in ask(engine, [request(torch.ones(rows, 3)) for rows in (3, 2, 4, 1, 1, 1, 1, 1)]):
                await answer.values()
            assert max(engine.statistics("m")[0][2].by_rows) <= 4
            with pytest.raises(ServeError, match="more than the 4 that .*MaxBatch=") as refused:
                engine.submit(request(torch.ones(5, 3)), lambda _: None)
            assert refused.value.status == 413

    asyncio.run(run())


@pytest.mark.parametrize(
    ("module", "why"),
    [(Total(), r"output 'OUTPUT__0' has shape \[\] for"), (Neighbours(), "depends on the rows beside it")],
    ids=["one answer for all", "rows that see each other"],
)
def test_a_model_that_is_not_batch_invariant_is_served_unbatched(
    tmp_path: Path, module: torch.nn.Module, why: str, journal: Callable[[], str]
) -> None:
    """Right answers, one by one, and the log says why."""
    save_script(module, tmp_path / "m.pt", ROWS)
    inputs = [torch.randn(2, 3) for _ in range(8)]

    async def run() -> None:
        async with serving(tmp_path / "m.pt", workers=2) as engine:
            assert model_config(engine.metadata("m"))["max_batch_size"] == 0
            for x, answer in zip(inputs, ask(engine, [request(x) for x in inputs]), strict=True):
                assert torch.equal((await answer.values())[0], module(x))

    asyncio.run(run())
    (line,) = [line for line in journal().splitlines() if "unbatched" in line]
    assert line.startswith("<6>torchpar: model m version 1: ") and re.search(why, line), line


class Late(torch.nn.Module):
    """Batch-invariant for the numbers of a trial, and not for larger ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:1] if bool(x.max() > 1e6) and bool(x.max() < 1e9) else x


def test_outputs_that_are_not_the_rows_turn_batching_off_while_serving(
    tmp_path: Path, journal: Callable[[], str]
) -> None:
    """The batch in question is computed again, one request at a time."""
    save_script(Late(), tmp_path / "m.pt", ROWS)
    inputs = [torch.full((2, 3), 2e6 + i) for i in range(4)]

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            config = model_config(engine.metadata("m"))
            for x, answer in zip(inputs, ask(engine, [request(x) for x in inputs]), strict=True):
                assert torch.equal((await answer.values())[0], x[:1])
            assert model_config(engine.metadata("m")) == config

    asyncio.run(run())
    assert "served unbatched from now on" in journal()


def test_a_request_that_the_model_cannot_stand_costs_only_itself(tmp_path: Path) -> None:
    """Others in its batch are answered."""
    module = Lookup()
    save_script(module, tmp_path / "m.pt", described(-1, datatype="INT64", names="index"))

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            asked = [request(torch.tensor([i]), names="index") for i in (1, 99, 2)]
            first, bad, last = ask(engine, asked)
            assert torch.equal((await first.values())[0], module(torch.tensor([1])))
            assert await bad.status() == 500
            assert torch.equal((await last.values())[0], module(torch.tensor([2])))
            assert engine.counters()[0][2].failed["BACKEND"] == 1

    asyncio.run(run())


def test_a_full_queue_is_a_503_at_once(tmp_path: Path) -> None:
    """With seconds after which to try again; what was accepted is answered."""
    save_script(Slow(), tmp_path / "m.pt", described(-1, 1))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_queue=3, max_batch=1) as engine:
            async with busy(engine) as first:
                accepted = ask(engine, [request(torch.ones(1, 1))] * 3)
                with pytest.raises(ServeError, match="full") as refused:
                    Answer(engine, request(torch.ones(1, 1)))
                assert refused.value.status == 503 and (refused.value.retry_after or 0) > 0
            for answer in (first, *accepted):
                await answer.values()
            assert engine.counters()[0][2].failed["REJECTED"] == 1

    asyncio.run(run())


def test_cancelled_and_late_requests_are_not_computed(tmp_path: Path) -> None:
    """They are answered while the worker is still busy with another."""
    save_script(Slow(), tmp_path / "m.pt", described(-1, 1))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=1) as engine:
            async with busy(engine) as first:
                cancelled = Answer(engine, request(torch.ones(1, 1)))
                late = ask_for_a_moment(engine, request(torch.ones(1, 1)))
                kept = Answer(engine, request(torch.ones(1, 1)))
                cancelled.ticket.cancel()
                assert await cancelled.status() == 499
                assert await late.status() == 504
                cancelled.ticket.cancel()
                with pytest.raises(ServeError, match="deadline") as refused:
                    Answer(engine, request(torch.ones(1, 1), deadline=time.monotonic() - 1))
                assert refused.value.status == 504
            await first.values()
            await kept.values()
            assert engine.statistics("m")[0][2].batches == 2

    asyncio.run(run())


def test_the_urgent_goes_first(tmp_path: Path) -> None:
    """Priority 1 overtakes what waits."""
    save_script(Slow(), tmp_path / "m.pt", described(-1, 1))

    async def run() -> None:
        order: list[str] = []
        async with serving(tmp_path / "m.pt", max_batch=1) as engine:
            async with busy(engine) as first:
                for name, priority in (("none", 0), ("second", 2), ("first", 1)):
                    asked = request(torch.ones(1, 1), id=name, priority=priority)
                    engine.submit(asked, lambda got: order.append(got.id if isinstance(got, Response) else "failed"))
            await first.values()
        assert order == ["first", "second", "none"]

    asyncio.run(run())


def test_inputs_go_by_name_and_outputs_are_those_asked_for(tmp_path: Path) -> None:
    """In any order, alone and in a batch, however often that order comes."""
    two = {"outputs": [{"name": n, "datatype": "FP32", "shape": [-1]} for n in ("sum", "difference")]}
    save_script(SumAndDifference(), tmp_path / "m.pt", described(-1, names="a b", **two))
    a, b = torch.tensor([5.0, 6.0]), torch.tensor([1.0, 2.0])

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            both, turned, again, one = ask(
                engine,
                [
                    request(a, b, names="a b"),
                    request(b, a, names="b a"),
                    request(b, a, names="b a"),
                    request(a, b, names="a b", outputs=["difference"]),
                ],
            )
            assert [y.tolist() for y in await both.values()] == [[6.0, 8.0], [4.0, 4.0]]
            assert [y.tolist() for y in await turned.values()] == [[6.0, 8.0], [4.0, 4.0]]
            assert [y.tolist() for y in await again.values()] == [[6.0, 8.0], [4.0, 4.0]]
            assert [y.tolist() for y in await one.values()] == [[4.0, 4.0]]
            assert [spec.name for spec in engine.metadata("m").outputs] == ["sum", "difference"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Request("m", [Tensor("y", "FP32", (1, 3), b"0" * 12)]), "no input 'y'"),
        (Request("m", []), "input 'x' of model 'm' is missing"),
        (Request("m", [Tensor("x", "FP32", (1, 3), b"0" * 12)] * 2), "there twice"),
        (Request("m", [Tensor("x", "INT32", (1, 3), b"0" * 12)]), "FP32 of shape"),
        (Request("m", [Tensor("x", "FP33", (1, 3), b"0" * 12)]), "no datatype 'FP33'"),
        (Request("m", [Tensor("x", "FP32", (1, 4), b"0" * 16)]), "FP32 of shape"),
        (Request("m", [Tensor("x", "FP32", (-1, 3), b"0" * 12)]), "whole numbers from 0"),
        (Request("m", [Tensor("x", "FP32", (True, 3), b"0" * 12)]), "whole numbers from 0"),
        (Request("m", [Tensor("x", "FP32", (1 << 62, 3), b"0" * 12)]), "bytes, not 12"),
        (Request("m", [Tensor("x", "FP32", (1, 3), b"0" * 11)]), "has 12 bytes, not 11"),
        (Request("m", [Tensor("x", "FP32", (1, 3), b"0" * 12)], outputs=["z"]), "no output 'z'"),
    ],
    ids=lambda part: part.replace(" ", "-") if isinstance(part, str) else "",
)
def test_tensors_that_do_not_fit_are_a_400(tmp_path: Path, asked: Request, says: str) -> None:
    """Refused before they are queued, in words that tell what is wrong."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            with pytest.raises(ServeError) as refused:
                Answer(engine, asked)
            assert refused.value.status == 400 and says in refused.value.message
            await Answer(engine, request(torch.ones(1, 3))).values()

    asyncio.run(run())


def test_data_that_cannot_be_laid_out_ends_no_worker(tmp_path: Path, journal: Callable[[], str]) -> None:
    """A list where bytes belong: a protocol's mistake costs that request alone."""
    save_script(Affine(), tmp_path / "m.pt", ROWS)
    wrong = Request("m", [Tensor("x", "FP32", (1, 3), [b"0"] * 12)])

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            good, bad = ask(engine, [request(torch.ones(1, 3)), wrong])
            assert await bad.status() == 500
            assert torch.equal((await good.values())[0], torch.full((1, 3), 3.0))
            assert engine.live()

    asyncio.run(run())
    assert "a batch was not computed" in journal()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64])
def test_every_datatype_goes_through_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also those without a form in JSON."""
    names = {torch.float16: "FP16", torch.bfloat16: "BF16", torch.float64: "FP64", torch.int8: "INT8",
             torch.uint8: "UINT8", torch.int64: "INT64"}  # fmt: skip
    save_script(SumAndDifference(), tmp_path / "m.pt", described(-1, datatype=names[dtype], names="a b"))
    a, b = torch.arange(4).to(dtype), torch.ones(4).to(dtype)

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            for answer in ask(engine, [request(a, b, names="a b")] * 3):
                total, difference = await answer.values()
                assert torch.equal(total, a + b) and torch.equal(difference, a - b)

    asyncio.run(run())


def test_bytes_that_are_no_truth_values_are_made_some(tmp_path: Path) -> None:
    """A bool tensor with a 7 in it is undefined behaviour in torch."""

    class Not(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.logical_not(x)

    save_script(Not(), tmp_path / "m.pt", described(-1, datatype="BOOL"))

    async def run() -> bytes:
        async with serving(tmp_path / "m.pt") as engine:
            got = await Answer(engine, Request("m", [Tensor("x", "BOOL", (4,), b"\0\1\7\xff")])).get()
            assert isinstance(got, Response) and not isinstance(got.outputs[0].data, list)
            return bytes(got.outputs[0].data)

    assert asyncio.run(run()) == b"\1\0\0\0"


def test_a_model_that_says_nothing_of_its_inputs_takes_what_comes(tmp_path: Path) -> None:
    """Its shapes are guessed from the first layer for batching; others are computed alone."""
    module = mlp()
    save_script(module, tmp_path / "m.pt")
    name = torch.jit.script(module).forward.schema.arguments[1].name
    flat, deep = torch.randn(2, 3), torch.randn(2, 4, 3)

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            assert engine.metadata("m").inputs[0].shape == (-1, 3)
            answers = ask(engine, [request(x, names=name) for x in (flat, deep, flat)])
            for x, answer in zip((flat, deep, flat), answers, strict=True):
                assert torch.allclose((await answer.values())[0], module(x), atol=1e-6)
            assert engine.statistics("m")[0][2].batches == 2

    asyncio.run(run())


def test_stop_answers_what_was_accepted(tmp_path: Path) -> None:
    """New requests are refused from the first moment on."""
    save_script(Slow(), tmp_path / "m.pt", described(-1, 1))

    async def run() -> None:
        async with serving(tmp_path / "m.pt", max_batch=1) as engine:
            answers = ask(engine, [request(torch.full((1, 1), 100.0))] * 10)
            stopping = asyncio.ensure_future(engine.stop(30))
            await asyncio.sleep(0)
            with pytest.raises(ServeError, match="stopping") as refused:
                Answer(engine, request(torch.ones(1, 1)))
            assert refused.value.status == 503 and not engine.ready()
            await stopping
            assert all([torch.equal((await a.values())[0], torch.full((1, 1), 100.0)) for a in answers])

    asyncio.run(run())


def test_a_stop_that_may_not_wait_answers_503(tmp_path: Path) -> None:
    """Nobody is left without an answer."""
    save_script(Slow(), tmp_path / "m.pt", described(-1, 1))

    async def run() -> list[int]:
        async with serving(tmp_path / "m.pt", drain=0, max_batch=1) as engine:
            async with busy(engine) as first:
                answers = ask(engine, [request(torch.ones(1, 1))] * 3)
                stopping = asyncio.ensure_future(engine.stop(0))
                statuses = [await answer.status() for answer in answers]
            await asyncio.gather(first.values(), stopping)
        return statuses

    assert asyncio.run(run()) == [503, 503, 503]


def test_a_stop_does_not_wait_for_a_model_that_is_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take minutes; the one that is served is put away at once."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)
    loading, end = threading.Event(), threading.Event()

    def load(*_: object) -> None:
        loading.set()
        end.wait(300)
        raise ModelError("too late")

    async def run() -> float:
        async with serving(tmp_path / "m.pt") as engine:
            monkeypatch.setattr("torchpar.serve.engine.lifecycle.load_served", load)
            reload = asyncio.ensure_future(engine.reload())
            await asyncio.get_running_loop().run_in_executor(None, loading.wait)
            asyncio.get_running_loop().call_later(300, end.set)
            began = time.monotonic()
        took = time.monotonic() - began
        end.set()
        await asyncio.wait((reload,))
        return took

    assert asyncio.run(run()) < 200


def test_outputs_that_cannot_be_cut_are_a_500(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left without an answer, and the next batch is computed."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt") as engine:
            served = engine._repository.get("m")
            with monkeypatch.context() as patch:
                patch.setattr(served, "_answer", lambda *_: 1 / 0)
                assert [await answer.status() for answer in ask(engine, [request(torch.ones(1, 3))] * 2)] == [500, 500]
            await Answer(engine, request(torch.ones(1, 3))).values()

    asyncio.run(run())


def test_the_configuration_says_what_a_request_may_bring(tmp_path: Path) -> None:
    """Clients cut their data by it: it does not move with what is learned, and so many rows are answered."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)
    (tmp_path / "state").mkdir()

    async def run(**limits: int) -> dict[str, Any]:
        async with serving(tmp_path / "m.pt", state=str(tmp_path / "state"), **limits) as engine:
            config = model_config(engine.metadata("m"))
            x = torch.randn(config["max_batch_size"], 3)
            assert (await Answer(engine, request(x)).values())[0].shape[0] == x.shape[0]
            assert model_config(engine.metadata("m")) == config
            return config

    config = asyncio.run(run())
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (1024, [3])
    (kept,) = (tmp_path / "state").iterdir()
    kept.write_text(kept.read_text().split('"points"')[0] + '"points": [[1, 0.1], [2, 0.2]]}')
    assert asyncio.run(run())["max_batch_size"] == 1024
    assert asyncio.run(run(max_batch=5))["max_batch_size"] == 5


@pytest.mark.parametrize(
    ("specs", "rows"),
    [
        ([("x", "FP32", (-1, 3, 224, 224))], 55),
        ([("x", "FP32", (-1, 1 << 20)), ("y", "FP64", (-1, 1 << 20))], 2),
        ([("x", "FP32", (-1, 1 << 30))], 1),
        ([("x", "BYTES", (-1, -1)), ("n", "INT64", ())], 1024),
    ],
)
def test_so_many_rows_fit_the_body_of_a_request(specs: list[Any], rows: int) -> None:
    assert rows_of_a_request([TensorSpec(*spec) for spec in specs]) == rows


def test_what_was_learned_is_kept_over_a_restart(tmp_path: Path, journal: Callable[[], str]) -> None:
    """The next start does not measure again, unless a file is another; nor do processes with fewer threads."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)
    (tmp_path / "state").mkdir()

    async def run(workers: int = 1) -> int:
        journal()
        async with serving(tmp_path / "m.pt", state=str(tmp_path / "state"), workers=workers):
            return int(re.findall(r"batches of up to (\d+) rows", journal())[0])

    asyncio.run(run())
    (kept,) = (tmp_path / "state").iterdir()
    kept.write_text(kept.read_text().split('"points"')[0] + '"points": [[1, 0.1], [2, 0.1], [4, 0.4]]}')
    learned = kept.read_text()
    assert asyncio.run(run(2)) == asyncio.run(run()) == 2
    kept.write_text(learned)
    (tmp_path / "m.json").write_text('{"optimize": true}')
    assert asyncio.run(run()) > 2
    (tmp_path / "m.json").unlink()
    kept.write_text(learned)
    assert asyncio.run(run()) == 2
    save_script(mlp(width=20), tmp_path / "m.pt", ROWS)
    assert asyncio.run(run()) > 2


def test_the_queue_holds_what_the_workers_compute_that_there_are(tmp_path: Path) -> None:
    """Not what the whole place would, of which the process has a part: its model is loaded before that is known."""
    save_script(mlp(), tmp_path / "m.pt", ROWS)

    async def run() -> int:
        engine = Engine(EngineOptions("m", model=str(tmp_path / "m.pt"), workers=4))
        await engine.prepare(None, (), ())
        served = engine._repository.get("m")
        served.curve = Curve({1: 0.001}, 1)
        engine.open(1)
        await engine.stop(1)
        return served.limit

    assert asyncio.run(run()) == 1000


@pytest.mark.parametrize("beside", [0.5, 2.0])
def test_a_team_is_tried_beside_another_one(beside: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As each worker keeps its own, with which there are more threads than CPUs: then the first is no measure."""
    now, teams = [0.0], set[threading.Thread]()

    class Timed(ThreadRunner):
        def __init__(self) -> None:
            """It has no program."""

        def compute(self, slot: int, columns: Sequence[Column], team: int = 1) -> Computed:
            if team > 1:
                teams.add(threading.current_thread())
            alone = 0.5 if len(teams) < 2 else beside
            now[0] += alone if team > 1 else 1.0
            return Computed([], 0.0, 0.0)

    monkeypatch.setattr(loading.time, "monotonic", lambda: now[0])
    sample = (Tensor("x", "FP32", (1, 1), bytes(4)),)
    options = EngineOptions("m", workers=2, own=True)
    found = loading._team_from(Timed(), Probe("", sample, ()), Curve({1: 0.001, 4: 0.004}), options)
    assert found == (4 if beside < 1 else None)


def test_a_big_request_alone_gets_all_threads_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a small one, and none that others could be beside; and afterwards every worker has one thread again."""
    save_script(Affine(), tmp_path / "m.pt", ROWS)

    async def run() -> None:
        async with serving(tmp_path / "m.pt", workers=2, own=True) as engine:
            served = engine._repository.get("m")
            assert served.team_from is None, "nothing to gain for a model of microseconds"
            served.team_from = 4
            tell = lambda inputs: {"y": torch.full((len(inputs[0]),), torch.get_num_threads())}  # noqa: E731
            monkeypatch.setattr(served.runner._program, "compute", tell)

            async def threads(*rows: int) -> list[int]:
                answers = ask(engine, [request(torch.ones(n, 3)) for n in rows])
                return [int((await answer.values())[0][0]) for answer in answers]

            assert await threads(4) == [2]
            assert await threads(3) == [1]
            assert await threads(4, 4, 4) == [1, 1, 1]
            assert await threads(3) == [1]

    asyncio.run(run())
