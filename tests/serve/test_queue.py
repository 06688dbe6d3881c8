"""Who is next, and who goes with whom."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from torchpar.serve.engine.fitting import Fit
from torchpar.serve.engine.queue import Queue, Waiting
from torchpar.serve.engine.requests import Request


def waiting(name: str, rows: int = 1, key: Any = "", priority: int = 0, deadline: float | None = None) -> Waiting:
    request = Request("m", [], id=name, priority=priority, deadline=deadline)
    return Waiting(request, lambda _: None, None, Fit(rows, key, 10), lambda _: None)


def take(queue: Queue, most: int, now: float = 0.0) -> list[str]:
    return [w.request.id for w in queue.take(most, now, []) if w.request]


def test_the_oldest_goes_first_and_rows_are_counted() -> None:
    """Three rows fit into a cap of four with one more, not with two."""
    queue = Queue()
    for name, rows in (("a", 3), ("b", 1), ("c", 2), ("d", 9)):
        queue.put(waiting(name, rows))
    assert (len(queue), queue.rows, queue.size) == (4, 15, 40)
    assert take(queue, 4) == ["a", "b"]
    assert take(queue, 4) == ["c"]
    # More than the cap: alone.
    assert take(queue, 4) == ["d"]
    assert (len(queue), queue.rows, queue.size) == (0, 0, 0)
    assert take(queue, 4) == []


def test_only_one_bucket_goes_together() -> None:
    """Other shapes wait, and the oldest bucket is next."""
    queue = Queue()
    for name, key in (("a", 1), ("b", 2), ("c", 1), ("d", 2)):
        queue.put(waiting(name, key=key))
    assert take(queue, 8) == ["a", "c"]
    assert take(queue, 8) == ["b", "d"]


def test_priority_one_overtakes_and_none_goes_last() -> None:
    """1 is the highest; 0 is no wish and goes after all others."""
    queue = Queue()
    for name, priority in (("none", 0), ("low", 7), ("high", 1), ("low2", 7)):
        queue.put(waiting(name, priority=priority))
    assert take(queue, 2) == ["high", "low"]
    assert take(queue, 9) == ["low2", "none"]


def test_an_urgent_bucket_goes_before_an_older_one() -> None:
    """Also when the older one could fill the batch."""
    queue = Queue()
    queue.put(waiting("old", key=1))
    queue.put(waiting("urgent", key=2, priority=1))
    assert take(queue, 8) == ["urgent"]


def test_what_is_dropped_or_late_is_not_computed() -> None:
    """It leaves the counts at once, and `take` passes over it."""
    queue = Queue()
    kept, gone, late = waiting("kept"), waiting("gone"), waiting("late", deadline=5.0)
    for each in (gone, late, kept):
        queue.put(each)
    queue.drop(gone)
    assert len(queue) == 2 and gone.request is None
    expired: list[Waiting] = []
    assert queue.take(8, 5.0, expired) == [kept]
    assert expired == [late] and len(queue) == 0


def test_expiry_finds_all_that_are_late_and_the_next_deadline() -> None:
    """For those that wait while every worker is busy."""
    queue = Queue()
    for deadline in (3.0, 1.0, 2.0, None):
        queue.put(waiting("", deadline=deadline))
    assert queue.earliest == 1.0
    assert sorted(w.request.deadline or 0 for w in queue.expire(2.0) if w.request) == [1.0, 2.0]
    assert queue.earliest == 3.0 and len(queue) == 2


def test_cancelling_all_the_time_does_not_fill_the_memory() -> None:
    """Shells of cancelled requests are swept out while no worker takes anything."""
    queue = Queue()
    queue.put(waiting("stays"))
    for _ in range(1000):
        each = waiting("goes")
        queue.put(each)
        queue.drop(each)
    assert sum(len(line) for line in queue._lines.values()) < 200
    assert take(queue, 8) == ["stays"]


Step = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 5), st.integers(0, 2), st.sampled_from([0, 1, 5])),
    st.tuples(st.just("take"), st.integers(1, 8)),
    st.tuples(st.just("drop"), st.integers(0, 50)),
    st.tuples(st.just("expire"), st.integers(0, 50)),
)


@given(st.lists(Step, max_size=60))
def test_every_request_comes_out_once(steps: list[Any]) -> None:
    """For any order of arrivals, batches, cancellations and deadlines; a batch is one bucket and within the cap."""
    queue = Queue()
    put: list[Waiting] = []
    out: list[Waiting] = []
    for step in steps:
        if step[0] == "put":
            each = waiting(str(len(put)), step[1], step[2], step[3], deadline=len(put) + 0.5 if step[1] == 5 else None)
            put.append(each)
            queue.put(each)
        elif step[0] == "drop" and step[1] < len(put) and put[step[1]].state == 0:
            queue.drop(put[step[1]])
            out.append(put[step[1]])
        elif step[0] == "expire":
            out += queue.expire(float(step[1]))
        elif step[0] == "take":
            late: list[Waiting] = []
            taken = queue.take(step[1], -1.0, late)
            assert not late and len({w.key for w in taken}) <= 1
            assert sum(w.rows for w in taken) <= step[1] or len(taken) == 1
            assert bool(taken) == (len(queue) + len(taken) > 0)
            out += taken
        left = [w for w in put if w.state == 0]
        assert (len(queue), queue.rows, queue.size) == (len(left), sum(w.rows for w in left), 10 * len(left))
    out += queue.all()
    assert sorted(map(id, out)) == sorted(map(id, put)) and len(queue) == 0
