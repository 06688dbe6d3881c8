"""Tells how the service answers in a file of its own folder, which torchpard reads; see contract/serving.py.

Nobody waits for anybody: a file that cannot be written is written the next time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping

from torchpar.contract.serving import SERVING_FILE, ServingReport, ServingTotals, make_serving_json
from torchpar.serve.engine.statistics import SECONDS, Statistics

PERIOD = 2.0
# With one every two seconds, the rates are those of the last half a minute.
_KEPT = 16

Counted = Iterable["tuple[str, str, Statistics, int]"]


class Answers:
    """The totals of the last half a minute, and the file that has the first and the last of them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Writes nothing yet, and never where the service has no folder (RuntimeDirectory=)."""
        folder = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self._path = os.path.join(folder, SERVING_FILE) if folder else ""
        self._kept: deque[ServingTotals] = deque(maxlen=_KEPT)

    def tell(self, counted: Counted, now: float) -> None:
        """Writes the totals of all models and processes at `now`, in seconds of the monotonic clock."""
        totals = make_totals(counted, now)
        if self._kept and (totals.answered < self._kept[-1].answered or totals.failed < self._kept[-1].failed):
            self._kept.clear()  # a model was unloaded, and its counters with it
        self._kept.append(totals)
        if self._path:
            text = make_serving_json(ServingReport(SECONDS, self._kept[0], totals))
            try:
                _write(self._path, text)
            except OSError:
                return


def make_totals(counted: Counted, now: float) -> ServingTotals:
    """Adds up what all models have counted, each (name, version, statistics, requests in the queue)."""
    answered = failed = queued = 0
    counts = [0] * (len(SECONDS) + 1)
    for _, _, statistics, waiting in counted:
        answered += statistics.success[0]
        failed += sum(statistics.failed.values())
        queued += waiting
        counts = [one + other for one, other in zip(counts, statistics.total_seconds.counts)]
    return ServingTotals(now, answered, failed, queued, tuple(counts))


def _write(path: str, text: str) -> None:
    """Writes a file that is always whole. Raises OSError."""
    new = f"{path}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
    os.replace(new, path)
