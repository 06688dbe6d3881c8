"""What clients may take is of the whole service: its processes divide it, and a burst of connections is no fault."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.engines import ask, request, serving
from tests.serve.models import mlp, save_script
from torchpar.serve.engine import engine
from torchpar.serve.errors import ServeError
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.peer import Peer
from torchpar.serve.http.state import ServerState
from torchpar.serve.limits import ALL_SMALL, LEAST_CONNECTIONS, MANY_SMALL, Limits, own_limits


class Waits(Peer):
    """A client whose request is being computed."""

    peer = "10.0.0.1", 1

    def expire(self, now: float) -> None:
        """Does nothing."""

    make_way: Any = expire
    drain: Any = expire
    abort: Any = expire

    def waits_since(self) -> float | None:
        """Has sent all."""
        return None


@pytest.mark.parametrize("processes", [1, 2, 7, 16])
def test_a_burst_of_requests_waits_as_long_as_the_queue_may_be(processes: int) -> None:
    """A client with a connection for each request that waits was refused where the queue had room for thousands."""

    async def run() -> None:
        state = ServerState(lambda exchange: None, Limits(), RequestLog(1.0))
        state.loop = asyncio.get_running_loop()
        state.divide_limits(processes)
        for _ in range(8192 // processes):
            assert state.opened(client := Waits()) and not state.is_full(client)
        assert state.opened(late := Waits()) and state.is_full(late)
        assert state.small_each() * state.connections() <= ALL_SMALL

    asyncio.run(run())


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_take_no_more_together_than_one_may(processes: int) -> None:
    whole, part = Limits(), Limits().part(processes)
    for name in ("connections", "held", "owed"):
        assert getattr(part, name) * processes <= getattr(whole, name)
    assert part.body == whole.body and part.pipeline == whole.pipeline


def test_one_of_very_many_processes_still_takes_a_body_of_any_size_and_some_clients() -> None:
    part = Limits().part(200)
    assert (part.held, part.owed, part.connections) == (part.body, part.owed_each, LEAST_CONNECTIONS)


def test_those_who_are_told_to_go_have_files_too() -> None:
    assert Limits(files=1 << 20).part(1).connections == 8192
    assert Limits(files=1024).part(1).connections == 512
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, limits[1]))
    try:
        state = ServerState(lambda exchange: None, own_limits(), RequestLog(1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    found = [state.limits.connections]
    for processes in (2, 4, 100):
        state.divide_limits(processes)
        found.append(state.limits.connections)
    assert found == [300, 300, 300, 256]
    # Where they are less than any process has else.
    assert Limits(files=300).part(100).connections == 150


def test_small_messages_of_a_connection_may_be_many_where_there_are_few_connections() -> None:
    async def run() -> None:
        state = ServerState(lambda exchange: None, Limits(), RequestLog(1.0))
        state.loop = asyncio.get_running_loop()
        assert state.small_each() == MANY_SMALL
        state.opened(Waits())
        assert state.small_each() == MANY_SMALL

    asyncio.run(run())


def test_the_bytes_that_wait_are_divided_and_one_request_may_always_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_script(mlp(), tmp_path / "m.pt", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]})
    monkeypatch.setattr(engine, "QUEUE_BYTES", 100)
    monkeypatch.setattr(engine, "LEAST_QUEUE_BYTES", 50)

    async def run() -> list[int]:
        async with serving(tmp_path / "m.pt", max_batch=1) as served:
            found = []
            for processes in (1, 2, 10):
                served.divide_limits(processes)
                answers = []
                for _ in range(20):
                    try:
                        answers += ask(served, [request(torch.ones(1, 3))])  # of 12 bytes
                    except ServeError as error:
                        assert error.status == 503
                found.append(len(answers))
                for answer in answers:
                    await answer.values()
            monkeypatch.setattr(engine, "LEAST_QUEUE_BYTES", 1)
            served.divide_limits(100)
            await ask(served, [request(torch.ones(1, 3))])[0].values()
            return found

    assert asyncio.run(run()) == [8, 4, 4]
