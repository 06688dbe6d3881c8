"""t(b): how long a batch of b rows takes on one worker, measured at the start and corrected by every batch since.

The cap follows from it. More rows in a batch cost less each until the activations leave the cache, and every row beyond
that makes all the others wait: the cap is the smallest batch whose throughput is within a few per cent of the best.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

# Throughput this near to the best is as good: smaller batches answer sooner.
NEAR = 0.94
# What one batch tells, against all before it.
WEIGHT = 0.1
# One batch in so many is larger than the cap where enough waits: what was disturbed when it was measured is found out.
EXPLORE = 16
# No batch is grown beyond these while measuring: seconds of one batch, and rows.
LONGEST = 0.1
MOST_ROWS = 1024


class Curve:
    """Straight lines between points at powers of two; beyond the last point, its time per row."""

    def __init__(self, points: dict[int, float], most: int | None = None) -> None:
        """points: rows to seconds, with one row among them; most: the cap's upper bound in rows."""
        self._rows = sorted(points)
        self._seconds = [points[rows] for rows in self._rows]
        self._most = most
        self._since = 0
        self._batches = 0
        self.cap = self._choose()

    def limit(self, waiting: int) -> int:
        """Returns the most rows that the next batch may have, where `waiting` rows wait.

        That is the cap, and now and then the next point above it.
        """
        cap = self.cap
        if waiting < 2 * cap:
            return cap
        self._batches += 1
        if self._batches % EXPLORE or 2 * cap > (self._most or MOST_ROWS):
            return cap
        i = bisect_left(self._rows, cap + 1)
        if i == len(self._rows):
            # The seconds first: the event loop looks them up by the rows, at any time.
            self._seconds.append(2 * self._seconds[-1])
            self._rows.append(2 * cap)
        return self._rows[i] if self._seconds[i] <= LONGEST else cap

    def seconds(self, rows: int) -> float:
        """Returns the seconds that a batch of so many rows will take."""
        i = bisect_left(self._rows, rows)
        if i == len(self._rows):
            return self._seconds[-1] * rows / self._rows[-1]
        if self._rows[i] == rows or i == 0:
            return self._seconds[i]
        low, high = self._rows[i - 1], self._rows[i]
        part = (rows - low) / (high - low)
        return self._seconds[i - 1] * (1 - part) + self._seconds[i] * part

    def observe(self, rows: int, seconds: float) -> None:
        """Learns from a batch of `rows` rows that took `seconds`.

        The points around it move; the cap is chosen again every now and then.
        """
        change = min(max(seconds / self.seconds(rows), 0.25), 4.0) - 1.0
        i = min(bisect_left(self._rows, rows), len(self._rows) - 1)
        near = 1.0
        if i and self._rows[i] > rows:
            near = (rows - self._rows[i - 1]) / (self._rows[i] - self._rows[i - 1])
            self._seconds[i - 1] *= 1.0 + change * WEIGHT * (1 - near)
        self._seconds[i] *= 1.0 + change * WEIGHT * near
        self._since += 1
        if self._since >= 64:
            self._since = 0
            self.cap = self._choose()

    def parts(self, rows: int, workers: int) -> int:
        """Returns into how many parts to split the queued rows: one more where that saves a quarter of the time.

        Each part goes to an idle worker. Two half batches on two cores are sooner done than one, but cost more in all
        where t(b) is flat.
        """
        parts = 1
        while parts < min(workers, rows) and self._split(rows, parts + 1) < 0.75 * self._split(rows, parts):
            parts += 1
        return parts

    def row_seconds(self, cap: int) -> float:
        """Returns the seconds that a row takes in the best batch of up to `cap` rows."""
        return min(self.seconds(rows) / rows for rows in {1, cap, *self._rows} if rows <= cap)

    def points(self) -> dict[int, float]:
        """Returns the points, rows to seconds, as the constructor takes them."""
        return dict(zip(self._rows, self._seconds))

    def _split(self, rows: int, parts: int) -> float:
        return self.seconds(-(-rows // parts))

    def _choose(self) -> int:
        limit = self._most or MOST_ROWS
        points = [(rows, seconds) for rows, seconds in zip(self._rows, self._seconds) if rows <= limit]
        if not points:
            return limit
        best = max(rows / seconds for rows, seconds in points)
        cap = next(rows for rows, seconds in points if rows / seconds >= NEAR * best)
        # The last point was still getting better: the bound itself, where that is not a power of two.
        return limit if self._most and cap == points[-1][0] else cap


def measure(run: Callable[[int], float], most: int | None, budget: float = 1.0) -> dict[int, float]:
    """Times batches of 1, 2, 4 … rows until more rows do not help, `budget` seconds are used up or they get too long.

    run computes a batch of so many rows and returns the seconds it took. The smallest of several is a batch's time: a
    disturbance only ever adds. `most` limits the rows.
    """
    points: dict[int, float] = {}
    rows, spent, best, worse = 1, 0.0, 0.0, 0
    limit = min(most or MOST_ROWS, MOST_ROWS)
    while rows <= limit:
        tries = [run(rows)]
        spent += tries[0]
        while len(tries) < 5 and spent + tries[-1] < budget and sum(tries) < budget / 8:
            tries.append(run(rows))
            spent += tries[-1]
        points[rows] = max(min(tries), 1e-6)
        rate = rows / points[rows]
        worse = worse + 1 if rate < best * 1.03 else 0
        best = max(best, rate)
        if worse == 2 or spent >= budget or points[rows] > LONGEST:
            break
        rows *= 2
    return points
