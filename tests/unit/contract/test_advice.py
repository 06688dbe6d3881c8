"""What is advised from how long a job waited for its data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchpar.contract.advice import RECEIVE, START, Loading, advise, say_loading


def waiting(share: float, *, batches: int = 1000, passes: int = 1, workers: int = 0) -> Loading:
    """A process that waited for this part of 100 seconds, for batches that it loaded itself."""
    own = not workers
    return Loading(100.0, 100 * share, 100 * share * own, batches * own, passes * own, workers)


@pytest.mark.parametrize(
    ("loading", "threads", "budget", "workers", "share"),
    [
        (waiting(0.63), 8, 16, 2, 0.0),
        (waiting(0.9), 8, 16, 8, 0.11),  # eight find a CPU that computes nothing
        (waiting(0.63), 2, 2, 1, 0.0),  # one thread less: twice as slow, and all the same faster
        (waiting(0.8), 2, 3, 2, 0.0),
        (waiting(0.3), 2, 3, 1, 0.0),  # a second one would cost more than it gives
        (waiting(0.5, workers=2), 4, 16, 4, 0.0),
    ],
)
def test_as_many_workers_as_make_the_job_fastest(
    loading: Loading, threads: int, budget: int, workers: int, share: float
) -> None:
    """Threads give way where there is no room; who computes less waits less."""
    advice = advise(loading, threads, budget)
    assert advice and advice.workers == workers
    assert advice.share == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("loading", "threads", "budget"),
    [
        (waiting(0.1), 4, 16),  # does not wait
        (waiting(0.63), 1, 1),  # nowhere to run
        (waiting(0.5, passes=100_000), 4, 16),  # a fresh iterator at every step would start them each time
        (waiting(0.5, batches=1_000_000), 4, 16),  # batches that take no longer to load than to hand over
        (Loading(100, 63, 0, 0, 0, 0), 4, 16),  # an iterable dataset
        (Loading(0, 0, 0, 0, 0, 0), 4, 16),
        (Loading(5e-324, 5e-324, 0, 0, 0, 0), 1, 2),  # shorter than any batch
        (waiting(0.63), 0, 0),  # a plan that does not say
    ],
)
def test_no_advice_where_it_would_not_help(loading: Loading, threads: int, budget: int) -> None:
    """A number that makes the job slower is worse than none."""
    assert advise(loading, threads, budget) is None


@given(
    seconds=st.floats(0, 1e6), share=st.floats(0, 1), own=st.floats(0, 1), batches=st.integers(0, 10**7),
    passes=st.integers(0, 10**6), workers=st.integers(0, 100), threads=st.integers(0, 200), budget=st.integers(0, 300),
    pageable=st.booleans(),
)  # fmt: skip
def test_whatever_a_job_reports_is_put_into_words(  # noqa: PLR0913 - a column of the table each
    seconds: float, share: float, own: float, batches: int, passes: int, workers: int, threads: int, budget: int,
    pageable: bool,
) -> None:  # fmt: skip
    """Advice is for more workers than there are, within the budget, and for a real gain."""
    waited = seconds * share
    loading = Loading(seconds, waited, waited * own, batches, passes, workers, pageable)
    advice = advise(loading, threads, budget)
    assert advice is None or (workers < advice.workers < budget and 0 <= advice.share <= 1 and advice.speedup > 1)
    assert advice is None or 1 <= advice.threads <= threads
    assert say_loading(loading, threads, budget, asked=True).startswith("waited for data ")


def test_the_words_name_the_key_that_decides() -> None:
    """Workers of the call are the call's, and so are none where the conf asks for some; threads may give way."""
    more = waiting(0.5, workers=2)
    assert "; num_workers=4 in its DataLoader would leave" in say_loading(more, 4, 16, asked=False)
    assert "; LoaderWorkers=4 would leave" in say_loading(more, 4, 16, asked=True)
    none = waiting(0.63)
    assert "; num_workers=2 in its DataLoader would leave" in say_loading(none, 8, 16, asked=True)
    assert "; LoaderWorkers=2 (num_workers=2 where the call names it) would" in say_loading(none, 8, 16, asked=False)
    assert "LoaderWorkers=1 (num_workers=1 where the call names it) with Threads=1 would" in say_loading(
        none, 2, 2, asked=False
    )
    assert say_loading(waiting(0.63), 1, 1, asked=False).endswith("; more loader workers would not help")
    # A unit or a plan of an older version does not say what there is room for.
    assert say_loading(none, 2, 0, asked=False) == "waited for data 63 % of the time"
    assert RECEIVE < START
