"""What one serving process makes of the plan: its CPUs, threads, accelerators and the engine's settings."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from torchpar.contract.job import JobSettings, RankSettings, ServeSettings
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.process import _Serving, bind, engine_options, visible_devices
from torchpar.serve.process_count import Count
from torchpar.serve.supervisor.channel import Channel, make_pair
from torchpar.serve.supervisor.gauge import make_gauge

SERVE = ServeSettings(
    model="/srv/m.pt", handler=None, listen=(), grpc=(), workers=None, backend="thread", max_batch=8, max_queue=None,
    drain_timeout=30, own=True,
)  # fmt: skip
HERE = str(min(os.sched_getaffinity(0)))
RANKS = (
    RankSettings(0, HERE, "", 3, 0, ("0000:10:00.0", "0000:11:00.0")),
    RankSettings(1, HERE, "", 2, 0, ("0000:12:00.0",)),
)
JOB = JobSettings("torchpar-infer@a.b@c.service", 1, None, RANKS, serve=SERVE)


def test_each_process_sees_its_own_accelerators() -> None:
    """In the order of the plan; a list that somebody else has changed stays as it is."""
    environ = {"CUDA_VISIBLE_DEVICES": "0,GPU-b,2", "ROCR_VISIBLE_DEVICES": "0", "ZE_AFFINITY_MASK": ""}
    assert visible_devices(JOB, RANKS[0], environ) == {"CUDA_VISIBLE_DEVICES": "0,GPU-b"}
    assert visible_devices(JOB, RANKS[1], environ) == {"CUDA_VISIBLE_DEVICES": "2"}


@pytest.mark.parametrize(("said", "held"), [("3", "2"), ("7", "7"), (None, None)])
def test_threads_are_those_of_the_process_unless_the_admin_says_otherwise(said: str | None, held: str | None) -> None:
    """The unit can only say one number for all."""
    environ = {} if said is None else {"OMP_NUM_THREADS": said}
    before = os.sched_getaffinity(0)
    try:
        bind(JOB, RANKS[1], environ)
        assert os.sched_getaffinity(0) == {int(HERE)}
    finally:
        os.sched_setaffinity(0, before)
    assert environ.get("OMP_NUM_THREADS") == held


def test_the_engine_gets_what_the_conf_says_and_the_threads_of_the_plan() -> None:
    """The service's name is a single model's."""
    assert engine_options(JOB, RANKS[0], {"STATE_DIRECTORY": "/var/lib/x:/y"}) == EngineOptions(
        name="a.b@c", model="/srv/m.pt", workers=3, backend="thread", max_batch=8, own=True, gpus=2, state="/var/lib/x"
    )
    asked = replace(JOB, serve=replace(SERVE, workers=5))
    assert engine_options(asked, RANKS[0], {}).workers == 5


def test_what_is_served_is_told_while_a_load_of_several_models_goes_on() -> None:
    """Once for each change: where it hangs at one of them, the first process must know of those before it."""
    ours, theirs = make_pair()

    async def run() -> list[Any]:
        serving = _Serving(JOB, RANKS[0], Channel(theirs), make_gauge())
        serving._loop = asyncio.get_running_loop()
        models, end = {"a/1": {"m": "1"}, "z/1": {"m": "1"}}, asyncio.Event()

        async def load(verb: str, model: str) -> None:
            models["a/1"] = {"m": "2"}
            await end.wait()

        serving._engine = SimpleNamespace(
            serves=lambda: dict(models), do_here=load, live=lambda: True, unbatched=dict, shared_weights=list,
            weights_bytes=lambda: 0, has_open_requests=lambda: False, counters_here=list,
        )  # fmt: skip
        serving._front = SimpleNamespace(server=SimpleNamespace(state=SimpleNamespace(usage=dict)))
        serving._find_count = lambda: Count(1, "")  # type: ignore[method-assign]
        serving._send_serves(loaded=True)
        serving._take_order({"do": "reload", "model": "", "number": 0})
        await asyncio.sleep(0)
        serving._beat()
        serving._beat()
        models["z/1"] = {"m": "2"}
        end.set()
        while serving._tasks:
            await asyncio.sleep(0)
        serving._beat()
        told = []
        while message := ours.receive():
            told += [message["serves"]] if "serves" in message else []
        return told

    new, old = {"m": "2"}, {"m": "1"}
    assert asyncio.run(run()) == [{"a/1": old, "z/1": old}, {"a/1": new, "z/1": old}, {"a/1": new, "z/1": new}]
