"""What a server could reach at best on this host: the model's computing, and what every server and its client cost."""

from __future__ import annotations

from collections.abc import Mapping

from tests.benchmarks.serve_load import Measured


def limit_at(rates: Mapping[int, float], most: int) -> float:
    """Rows per second of all processes together, in the best batches that have no more than `most` rows."""
    return max(rate for size, rate in rates.items() if size <= max(1, most))


def bound(
    rates: Mapping[int, float], least: Measured, connections: int, *, rows: int = 1, processes: int
) -> tuple[float, float]:
    """Requests per second that can be reached, and CPU microseconds that one then takes, the client's among them.

    A process has no more requests at once than its part of the connections, which bounds its batches; `least` is what
    the server that computes nothing did with the same requests. With fewer connections than CPUs nobody uses them all:
    then a request takes as long as it does there, and as one computed alone.
    """
    computing = 1e6 * processes * rows / limit_at(rates, max(rows, connections * rows // processes))
    if connections < processes:
        return 1e6 * connections / (1e6 * connections / least.per_second + computing), least.cpu_us + computing
    return 1e6 * processes / (least.client_us + least.cpu_us + computing), least.cpu_us + computing
