"""GET /metrics: Triton's names for what Triton has, and histograms, which Triton has not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Callable

from torchpar.serve.engine.statistics import Histogram, Statistics

if TYPE_CHECKING:
    from torchpar.serve.engine.engine import Engine
    from torchpar.serve.http.state import ServerState

Samples = Iterable[tuple[str, float]]


def render_metrics(engine: Engine, state: ServerState) -> bytes:
    """Renders the Prometheus text format, version 0.0.4."""
    models = [(_labels(model=name, version=version), s, waiting) for name, version, s, waiting in engine.counters()]
    lines: list[str] = []
    for name, text, pick in _COUNTERS:
        lines += _family(name, "counter", text, [(labels, pick(s)) for labels, s, _ in models])
    failures = [
        (f"{labels[:-1]},{_labels(reason=reason)[1:]}", float(count))
        for labels, s, _ in models
        for reason, count in s.failed.items()
    ]
    lines += _family("nv_inference_request_failure", "counter", "Requests without an answer, by reason", failures)
    waiting = [(labels, float(count)) for labels, _, count in models]
    lines += _family("nv_inference_pending_request_count", "gauge", "Requests that wait to be computed", waiting)
    for name, text, histogram in _HISTOGRAMS:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for labels, s, _ in models:
            lines += _histogram(name, labels, histogram(s))
    ended = {(served.name, served.version) for served in engine.unbatched().values()}
    unbatched = [
        (_labels(model=name, version=version), float((name, version) in ended))
        for name, version, _, _ in engine.counters()
    ]
    lines += _family("torchpar_inference_unbatched", "gauge", "1: batching ended at a difference", unbatched)
    lines += _usage(state.usage_of_all())
    return ("\n".join(lines) + "\n").encode()


_COUNTERS: tuple[tuple[str, str, Callable[[Statistics], float]], ...] = (
    ("nv_inference_request_success", "Requests that were answered", lambda s: s.success[0]),
    ("nv_inference_count", "Rows that were computed", lambda s: s.rows),
    ("nv_inference_exec_count", "Batches that were computed", lambda s: s.batches),
    ("torchpar_inference_differences_total", "Batches with an answer that was another alone", lambda s: s.differences),
    ("nv_inference_request_duration_us", "Microseconds from arrival to answer, summed", lambda s: s.success[1] // 1000),
    ("nv_inference_queue_duration_us", "Microseconds in the queue, summed", lambda s: s.queue[1] // 1000),
    ("nv_inference_compute_input_duration_us", "Microseconds of preparing inputs", lambda s: s.input[1] // 1000),
    ("nv_inference_compute_infer_duration_us", "Microseconds of computing", lambda s: s.infer[1] // 1000),
    ("nv_inference_compute_output_duration_us", "Microseconds of taking outputs apart", lambda s: s.output[1] // 1000),
)

_HISTOGRAMS: tuple[tuple[str, str, Callable[[Statistics], Histogram]], ...] = (
    ("torchpar_inference_queue_seconds", "Time of a request in the queue", lambda s: s.queue_seconds),
    ("torchpar_inference_compute_seconds", "Time of computing one batch", lambda s: s.compute_seconds),
    ("torchpar_inference_request_seconds", "Time of a request from arrival to answer", lambda s: s.total_seconds),
    ("torchpar_inference_batch_rows", "Rows in one batch", lambda s: s.batch_rows),
)


def _usage(usage: Mapping[str, float]) -> Iterator[str]:
    names = sorted(name for name in usage if name.startswith("answers "))
    answers = [(_labels(code=name.split()[1]), usage[name]) for name in names]
    yield from _family("torchpar_http_answers_total", "counter", "HTTP answers, by status", answers)
    for name, kind, text, what in _USAGE:
        yield from _family(name, kind, text, [("", usage[what])])


_USAGE = (
    ("torchpar_http_refused_total", "counter", "Requests that were too slow, too large or malformed", "refused"),
    ("torchpar_http_connections", "gauge", "Open connections", "connections"),
    ("torchpar_http_held_bytes", "gauge", "Request bodies that arrive", "held_bytes"),
    ("process_cpu_seconds_total", "counter", "CPU time of the serving processes", "cpu_seconds"),
    ("process_resident_memory_bytes", "gauge", "Memory of the serving processes", "resident_bytes"),
)


def _family(name: str, kind: str, text: str, samples: Samples) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{labels} {_number(value)}"


def _histogram(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    total = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts):
        total += count
        yield f"{name}_bucket{labels[:-1]},{_labels(le=bound)[1:]} {total}"
    yield f"{name}_sum{labels} {_number(histogram.sum)}"
    yield f"{name}_count{labels} {total}"


def _labels(**labels: str) -> str:
    pairs = (f'{name}="{_escape(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def mean_and_percentile(histogram: Histogram, share: float) -> tuple[float | None, float | None]:
    """Returns the mean, and the upper bound below which `share` of the observations are; None where there are none."""
    count = sum(histogram.counts)
    if not count:
        return None, None
    seen = 0
    for bound, inside in zip(histogram.bounds, histogram.counts):
        seen += inside
        if seen >= share * count:
            return histogram.sum / count, bound
    return histogram.sum / count, None
