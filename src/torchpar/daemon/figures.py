"""Completes an observation by figures that change all the time: speed, CPUs, memory, answers, age.

What is looked at in a child of torchpard stands until something changes; this is read when somebody asks. It waits for
nothing: the kernel's counters, and files that the services may have filled as they like; see host/job_folder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from torchpar.contract.advice import say_loading
from torchpar.contract.messages import trouble
from torchpar.contract.serving import ServingReport, rates
from torchpar.contract.span import span
from torchpar.daemon.throughput import Ledger, Throughput
from torchpar.daemon.usage import Usage
from torchpar.host.job_folder import read_progress, read_serving
from torchpar.host.usage import read_use

# A job that is silent for so many of its usual steps, and for so long, hangs: reports come with each step and batch, or
# every two seconds where these are shorter.
HANG_STEPS = 20
HANG_SECONDS = 60.0


class Figures:
    """The figures of all services that run."""

    def __init__(self, ledger: Ledger, usage: Usage, read_serving: Callable[[str], ServingReport | None]) -> None:
        """`read_serving` gives what an inference service tells of its answers."""
        self._ledger, self._usage, self._read_serving = ledger, usage, read_serving

    def look(self, services: Iterable[Mapping[str, Any]], now: float) -> None:
        """Reads the counters. What a job told is gone when it ends, so this is called now and then, too."""
        services = list(services)
        self._ledger.look({row["unit"]: len(row["threads"]) for row in services})
        self._usage.look({row["unit"]: row["control_group"] for row in services if row["main_pid"]}, now)

    def complete(self, observation: Mapping[str, Any], now: float, *notes: str) -> dict[str, Any]:
        """Makes the whole answer: what was observed, the figures at this time, and these notices besides."""
        services = [self._complete(service, now) for service in observation["services"]]
        hangs = [f"{row['unit']} {row['hang']}" for row in services if row["hang"]]
        wrong = [*observation["wrong"], *(trouble("host", note) for note in notes)]
        return {
            **observation,
            "services": services,
            "well": not wrong and not any(row["wrong"] or row["problem"] for row in services),
            "wrong": wrong,
            "notices": [*observation["notices"], *hangs, *notes],
        }

    def _complete(self, row: Mapping[str, Any], now: float) -> dict[str, Any]:
        unit, since = row["unit"], row["since_monotonic_seconds"]
        runs = bool(row["main_pid"])
        throughput = self._ledger.now(unit) if runs else None
        last = self._ledger.last(unit)
        cpus_used = self._usage.cpus_used(unit, since if row["state"] == "running" else None) if runs else None
        hang = _hang(throughput, cpus_used, now) if throughput else None
        report = self._read_serving(unit) if runs and row["kind"] == "infer" else None
        serving = rates(report, now) if report else None
        return {
            **row,
            "state_age_seconds": _age(since, now),
            "checkpoint_age_seconds": _age(row["checkpoint_monotonic_seconds"], now) if runs else None,
            "throughput": throughput.as_json(now) if throughput else None,
            "loading": describe_loading(row, last) if last else None,
            "cpus_used": None if cpus_used is None else round(cpus_used, 2),
            "memory_bytes": self._usage.memory_bytes(unit) if runs else None,
            "serving": asdict(serving) if serving else None,
            "hang": hang,
            "wrong": [trouble("hang", hang), *row["wrong"]] if hang else row["wrong"],
        }


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else round(max(0.0, now - since), 1)


def live_figures() -> Figures:
    """Makes the figures of this host."""
    return Figures(Ledger(read_progress), Usage(read_use), read_serving)


def _hang(throughput: Throughput, cpus_used: float | None, now: float) -> str | None:
    """Says that a job makes no steps any more; None where it may still be at one."""
    silent = now - throughput.latest
    steps = throughput.steps_per_second
    # Where steps are compiled, only batches are counted; then a whole window of reports is taken for one.
    usual = 1 / steps if steps > 0 else throughput.loading.seconds
    if silent < max(HANG_SECONDS, HANG_STEPS * usual):
        return None
    using = "" if cpus_used is None else f", and uses {cpus_used:.1f} CPUs"
    each = f"a step took {span(usual)} before" if steps > 0 else "it told of itself before"
    return f"hangs: no step and no batch for {span(silent)}{using}; {each}"


def describe_loading(service: Mapping[str, Any], throughput: Throughput) -> str | None:
    """Says what a job's rank that waits most waits for, and what would help; None where the plan has no such rank."""
    local_rank = throughput.local_rank
    if local_rank >= len(service["threads"]):
        return None
    asked = service["loader_workers"][local_rank]
    threads, budget = service["threads"][local_rank], service["budgets"][local_rank]
    return say_loading(throughput.loading, threads, budget, asked=asked > 0)
