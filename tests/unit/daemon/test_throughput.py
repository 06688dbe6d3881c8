"""How far the jobs are: the rates that follow from what their ranks tell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.unit.contract.test_reports import FIRST
from torchpar.contract.reports import MOST_RANKS, Progress, RankProgress
from torchpar.contract.typed_json import parse_json, shape
from torchpar.daemon.state import Speed
from torchpar.daemon.throughput import Ledger, make_throughput

UNIT, OTHER = "torchpar-train@a.service", "torchpar-train@b.service"


def rank(first: Progress = FIRST, **totals: float) -> RankProgress:
    """A rank whose latest totals are more than its first by so much."""
    return RankProgress(first, replace(first, **{name: getattr(first, name) + more for name, more in totals.items()}))


def test_rates_are_of_the_time_between_reports() -> None:
    """One report has no rate yet."""
    assert make_throughput([]) is None
    assert make_throughput([RankProgress(FIRST, FIRST)]) is None
    throughput = make_throughput([rank(time=4.0, steps=20, samples=1280, waited=0.2, fetched=1)])
    assert throughput and throughput.as_json(105.0) == {
        "steps": 30,
        "steps_per_second": 5.0,
        "samples_per_second": 320.0,
        "loader_wait_share": 0.05,
        "bound": "compute",
        "loading": {
            "local_rank": 0, "seconds": 4.0, "waited": pytest.approx(0.2), "fetching": 0.0, "fetched": 1,
            "iterators": 0, "workers": 4, "pageable": True,
        },  # fmt: skip
        "ranks": 1,
        "silent_seconds": 1.0,
        "by_rank": [
            {
                "local_rank": 0, "pid": FIRST.pid, "steps_per_second": 5.0, "loader_wait_share": 0.05,
                "silent_seconds": 1.0,
            },
        ],
    }  # fmt: skip
    # A clock of the job's own.
    assert throughput.as_json(5.0)["silent_seconds"] == 0.0


def test_ranks_step_together_and_wait_for_the_slowest_loader() -> None:
    """Samples add up, steps do not, the share is the largest."""
    ranks = [
        rank(replace(FIRST, local_rank=number), time=2.0, steps=4, samples=128, waited=waited)
        for number, waited in ((0, 0.0), (1, 1.0))
    ]
    # One that has told only once, as it was started again.
    ranks.append(rank(replace(FIRST, local_rank=2, steps=1)))
    throughput = make_throughput(ranks)
    assert throughput and (throughput.steps_per_second, throughput.samples_per_second) == (2.0, 128.0)
    assert (throughput.loading.share, throughput.bound, throughput.ranks) == (0.5, "loader", 2)
    assert throughput.local_rank == 1


def test_a_rate_is_a_number_that_the_commands_take() -> None:
    """Whatever a job says: else the whole answer would be none to them, with all the other jobs in it."""
    first = replace(FIRST, time=0.0, steps=0, samples=0, waited=0.0)
    more = {"time": 1e-300, "steps": 2**53 - 1, "samples": 2**53 - 1, "waited": 2.0**52}
    throughput = make_throughput(rank(replace(first, local_rank=number), **more) for number in range(MOST_RANKS))
    assert throughput
    taken = shape(parse_json(json.dumps(throughput.as_json(0.0))), Speed)
    assert taken.samples_per_second == taken.steps_per_second == 2.0**53 and taken.loader_wait_share == 1.0


def test_a_rank_of_an_earlier_run_is_left_out() -> None:
    """The run before had two, this one has one."""
    before = rank(replace(FIRST, local_rank=1), time=2.0, steps=4, samples=128)
    now = rank(replace(FIRST, pid=17, time=200.0), time=2.0, steps=4, samples=64)
    throughput = make_throughput([now, before])
    assert throughput and (throughput.ranks, throughput.samples_per_second) == (1, 32.0)


def test_what_is_known_is_of_the_run_that_goes_on_or_of_the_last_one() -> None:
    """What a job waited for can be said after its end; how fast it is only while it runs."""
    told: dict[str, list[RankProgress]] = {UNIT: [rank(time=2.0, steps=4)]}

    def read(unit: str, ranks: int) -> Iterable[RankProgress]:
        return told.get(unit, [])

    ledger = Ledger(read)
    ledger.look({UNIT: 1, OTHER: 1})
    assert ledger.now(UNIT) == ledger.last(UNIT) == make_throughput(told[UNIT]) is not None
    assert ledger.now(OTHER) is ledger.last(OTHER) is None
    told.clear()
    ledger.look({UNIT: 1})
    assert ledger.now(UNIT) is None and ledger.last(UNIT)
    told[UNIT] = [rank(replace(FIRST, pid=8), time=2.0, steps=40)]
    ledger.look({UNIT: 1})
    assert ledger.last(UNIT) == ledger.now(UNIT) == make_throughput(told[UNIT])
    # A unit that nobody knows any more is forgotten.
    ledger.look({OTHER: 1})
    assert ledger.now(UNIT) is ledger.last(UNIT) is None


def test_as_many_ranks_are_read_as_may_run() -> None:
    """A job may still run with more than the plan now has; of one that has left the conf the plan has none."""
    asked: dict[str, int] = {}

    def read(unit: str, ranks: int) -> Iterable[RankProgress]:
        asked[unit] = ranks
        return ()

    Ledger(read).look({UNIT: 0, OTHER: 64})
    assert asked == {UNIT: 16, OTHER: 64}
