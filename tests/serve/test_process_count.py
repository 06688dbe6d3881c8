"""How many processes a place has, by what a request costs and what is computed for it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
import torch

from tests.serve.engines import serving
from tests.serve.models import Counter, described, save_script
from torchpar.contract.job import RankSettings, ServeSettings
from torchpar.serve.http.connection import Connection
from torchpar.serve.http.log import RequestLog
from torchpar.serve.http.state import ServerState
from torchpar.serve.limits import Limits
from torchpar.serve.process_count import Count, choose_count
from torchpar.serve.request_cost import measure_request
from torchpar.serve.supervisor.gauge import Gauge, make_gauge
from torchpar.serve.supervisor.member import Member
from torchpar.serve.supervisor.places import Place


@pytest.mark.parametrize(
    ("threads", "request_us", "row_us", "count"),
    [
        (2, 80, 50, 2), (2, 80, 4000, 1), (16, 80, 1, 16), (16, 80, 80, 12), (16, 80, 4000, 1), (64, 80, 4000, 2),
        (1, 80, 1, 1),
    ],
    ids=["cheap", "heavy", "nothing to compute", "as much as the request", "heavy on 16", "heavy on 64", "one CPU"],
)  # fmt: skip
def test_cheap_models_have_a_process_for_each_cpu_and_heavy_ones_one(
    threads: int, request_us: float, row_us: float, count: int
) -> None:
    assert choose_count(threads, request_us / 1e6, row_us / 1e6).count == count


def test_the_reason_has_what_was_measured() -> None:
    assert choose_count(2, 80e-6, 4e-3) == Count(
        1, "a request costs 80 us beside the 4000 us in which a row is computed: one event loop is enough for 2 compute"
        " threads"
    )  # fmt: skip


def test_large_models_that_processes_cannot_share_are_there_once() -> None:
    assert choose_count(4, 80e-6, 1e-6, unshared=500 << 20) == Count(
        1, "each of 4 processes would have its own 500 MiB of models, which they cannot share"
    )
    assert choose_count(4, 80e-6, 1e-6, unshared=8 << 20).count == 4


@pytest.mark.parametrize("kind", ["plain", "frozen", "optimized"])
def test_what_processes_cannot_share_is_known(tmp_path: Path, kind: str) -> None:
    """The weights of what was frozen, here or before it was saved, are constants of the code."""
    path = tmp_path / "m.pt"
    script = torch.jit.trace(torch.nn.Linear(3, 1 << 18).eval(), torch.zeros(1, 3))  # 4 MiB
    torch.jit.save(torch.jit.freeze(script) if kind == "frozen" else script, str(path))
    path.with_suffix(".json").write_text(json.dumps(described(-1, 3, optimize=kind == "optimized")))

    async def run() -> int:
        async with serving(path) as engine:
            return engine.unshared_bytes()

    unshared = asyncio.run(run())
    assert unshared == (0 if kind == "plain" else path.stat().st_size)


def test_a_request_costs_time_and_measuring_it_leaves_nothing_behind() -> None:
    """Some ten microseconds at the least, wherever this runs."""

    async def run() -> tuple[float, int]:
        cost = await measure_request()
        await asyncio.sleep(0.1)
        return cost, len(asyncio.all_tasks())

    cost, tasks = asyncio.run(run())
    assert 5e-6 < cost < 60 and tasks == 1


def place(threads: int, processes: int | None = None, workers: int | None = None, *, own: bool = True) -> Place:
    serve = ServeSettings(
        model="/srv/m.pt", handler=None, listen=(), grpc=(), workers=workers, backend="auto", max_batch=None,
        max_queue=None, drain_timeout=10, own=own, processes=processes,
    )  # fmt: skip
    return Place(RankSettings(1, "0-7", "", threads, 0, ()), serve)


def test_a_place_is_divided_as_its_first_process_has_measured() -> None:
    """Numbers are those that no other process has; threads differ by one at the most."""
    divided = place(8)
    first = divided.first()
    assert (first.number, first.rank, first.index) == (1, 1, 0) and divided.asks()
    divided.measured(first, 3, alone=False)
    further = divided.divide(first, {0, 1, 2})
    assert [(each.number, each.rank, each.index, each.threads) for each in further] == [(3, 1, 1, 3), (4, 1, 2, 2)]
    assert divided.parts(first) == {"threads": 3, "processes": 3}
    assert not divided.asks()
    divided.measured(further[0], 8, alone=False)
    divided.measured(first, 8, alone=False)
    assert divided.divide(first, {0, 1, 2, 3, 4}) == []


@pytest.mark.parametrize(
    ("processes", "workers", "measured", "count"),
    [(4, None, 1, 4), (100, None, 1, 8), (1, None, 8, 1), (None, 2, 8, 2)],
    ids=["asked for", "more than CPUs", "one", "no more than workers"],
)
def test_the_conf_has_the_last_word(processes: int | None, workers: int | None, measured: int, count: int) -> None:
    divided = place(8, processes, workers)
    divided.measured(divided.first(), measured, alone=False)
    assert 1 + len(divided.divide(divided.first(), {1})) == count


def test_where_others_use_the_cpus_there_is_one_unless_the_conf_says_more() -> None:
    """What is seldom running finds one request when it does, and computes it alone."""
    for processes, count in ((None, 1), (3, 3)):
        shared = place(8, processes, own=False)
        assert not shared.asks()
        shared.measured(shared.first(), 8, alone=False)
        assert 1 + len(shared.divide(shared.first(), {1})) == count


@pytest.mark.parametrize("processes", [None, 4])
def test_a_model_that_writes_to_itself_is_in_one_process_whenever_it_comes(processes: int | None) -> None:
    divided = place(8, processes)
    first = divided.first()
    divided.measured(first, 4, alone=False)
    further = divided.divide(first, {1})
    assert len(further) == 3
    divided.measured(first, 1, alone=True)
    assert divided.divide(further[0], set()) == []
    assert divided.divide(first, set()) == further and all(each.retiring for each in further)


@pytest.mark.parametrize("backend", ["auto", "thread"])
def test_a_program_that_writes_to_itself_is_one_whatever_computes_it(tmp_path: Path, backend: str) -> None:
    """Backend= overrules that one worker does, and not that all requests meet the same program."""
    save_script(Counter(), tmp_path / "m.pt", described(-1, 3))

    async def run() -> list[str]:
        async with serving(tmp_path / "m.pt", backend=backend) as engine:
            return engine.writers()

    assert asyncio.run(run()) == ["m"]


HANDLER = """
INPUTS = [("x", "FP32", (-1, 3))]
OUTPUTS = [("y", "FP32", (-1, 3))]

def load():
    pass

def predict(batch):
    return {"y": batch["x"]}
"""


def test_a_handler_is_in_one_process_too_where_threads_compute_it(tmp_path: Path) -> None:
    """Nobody knows what it keeps from one request to the next."""
    (tmp_path / "m.py").write_text(HANDLER)

    async def run() -> float | None:
        async with serving(tmp_path / "m.py", backend="thread") as engine:
            return engine.row_seconds()

    assert asyncio.run(run()) is None


def test_a_connection_counts_for_as_many_as_it_has_calls() -> None:
    """One of gRPC that is idle for one."""

    class Carries(Connection):
        __slots__ = ("calls",)

        def calls_under_way(self) -> int:
            """What a test says."""
            return self.calls

    async def run() -> list[int]:
        told: list[int] = []
        state = ServerState(lambda exchange: None, Limits(), RequestLog(1.0))
        state.loop = asyncio.get_running_loop()
        state.tell_load = told.append
        connections = [Carries(state, "") for _ in range(3)]
        for connection, calls in zip(connections, (0, 1, 12), strict=True):
            connection.calls = calls
            state.opened(connection)
        state.weigh()
        state.closed(connections[2])
        state.weigh()
        return told

    assert asyncio.run(run()) == [1, 2, 3, 14, 13, 2]


def test_the_gauge_is_read_while_it_is_written() -> None:
    """Each side has its own mapping of one page."""
    ours = make_gauge()
    theirs = Gauge(os.dup(ours.fd))
    theirs.set_load(7)
    theirs.take()
    member = Member(3, 0)
    member.gauge, member.passed = ours, 3
    assert member.has_to_do() == (7 + 2, 0)
    theirs.close()
    member.give_up()
    assert member.has_to_do() == (0, 0)
