"""The counters of several processes as one."""

from __future__ import annotations

import json
from typing import Any

from torchpar.serve.engine.statistics import BACKEND, Statistics
from torchpar.serve.protocol.triton import model_statistics
from torchpar.serve.supervisor.channel import Channel, make_pair
from torchpar.serve.supervisor.totals import Sender, add_up, from_json, merge, to_json


def counted(rows: int, times: int) -> Statistics:
    statistics = Statistics()
    for _ in range(times):
        statistics.batch(arrivals=[1.0, 2.0], rows=rows, times=(3.0, 3.1, 3.5, 3.6, 3.7))
    statistics.failure(BACKEND, 0.5)
    return statistics


def test_what_is_sent_comes_back() -> None:
    """Over JSON, whose keys are text."""
    sent = json.loads(json.dumps(to_json([("m", "1", counted(4, 3), 7)])))
    (name, version, statistics, waiting), = from_json(sent)
    assert (name, version, waiting) == ("m", "1", 7)
    wanted = counted(4, 3)
    wanted.last = statistics.last
    assert model_statistics("m", "1", statistics) == model_statistics("m", "1", wanted)
    assert statistics.batch_rows.counts == counted(4, 3).batch_rows.counts


def test_sums_are_those_of_one_process_that_had_done_it_all() -> None:
    """By model and version; what is counted once stays."""
    one = json.loads(json.dumps(to_json([("m", "1", counted(4, 3), 1), ("n", "1", counted(1, 1), 0)])))
    other = json.loads(json.dumps(to_json([("m", "1", counted(4, 2), 2)])))
    first, second = add_up([one, other])
    assert first[:2] == ("m", "1") and first[3] == 3 and second[:2] == ("n", "1")
    whole, alone = first[2], counted(4, 5)
    assert (whole.rows, whole.batches, whole.success) == (alone.rows, alone.batches, alone.success)
    assert whole.by_rows == alone.by_rows and whole.queue_seconds.counts == alone.queue_seconds.counts
    assert whole.failed[BACKEND] == 2


def test_counters_of_many_models_arrive_whatever_batches_they_had() -> None:
    """More than one message holds, and more than the other end's buffer: the rest comes the next time."""
    statistics = Statistics()
    for rows in range(1, 10_000):
        statistics.batch(arrivals=[1.0], rows=rows, times=(3.0, 3.1, 3.5, 3.6, 3.7))
    data = to_json([(f"m{i}", "1", statistics, 0) for i in range(300)])
    near, theirs = make_pair()
    far = Channel(theirs)
    sender = Sender(lambda news, names: near.send(counters=news, names=names))
    have: list[Any] = []
    for _ in range(50):
        sender(data)
        while message := far.receive():
            have = merge(have, message["counters"], message["names"])
    assert [entry[0] for entry in have] == [entry[0] for entry in data]
    assert merge(have, [], [["m7", "1"]]) == [have[7]]
