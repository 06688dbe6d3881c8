"""Describes a service in lines for people: its state first, then what it does, then what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from torchpar.cli.output import shorten
from torchpar.contract.advice import LOADER_BOUND
from torchpar.contract.span import span
from torchpar.daemon.state import ServiceState
from torchpar.doctor.words import rate, size

_MOST_ADDRESSES = 4

# systemd's words, where people have others.
_STATES = {"activating": "starting", "deactivating": "stopping"}
_WITH_AGE = ("running", "activating", "deactivating", "reloading")


def is_wrong(service: ServiceState) -> bool:
    """Says whether anything is wrong with a service."""
    return bool(service.wrong or service.problem)


def describe(service: ServiceState) -> list[str]:
    """Makes the lines of a service."""
    lines = ["; ".join([_state(service), *_placed(service)])]
    facts = [*_speed(service), *_use(service)]
    if facts:
        lines.append("; ".join(facts))
    if service.failure and not service.wrong:
        said = f": {service.failure.said}" if service.failure.said else ""
        lines.append(f"{service.failure.why}{said}")
    if service.loading and service.throughput and service.throughput.loader_wait_share >= LOADER_BOUND:
        lines.append(service.loading)
    # The first line says that it has.
    lines += [told.text.removeprefix("has failed: ") for told in service.wrong]
    if service.problem:
        lines.append(service.problem)
    return lines


def state_text(service: ServiceState) -> str:
    """Words the state with its age: "running 3 h", "failed 4 min ago"."""
    state = _STATES.get(service.state, service.state)
    age = service.state_age_seconds
    if age is None:
        return state
    if state in ("failed", "stopped"):
        return f"{state} {span(age)} ago"
    return f"{state} {span(age)}" if service.state in _WITH_AGE else state


def _state(service: ServiceState) -> str:
    state = state_text(service)
    restarts = service.restarts_in_10_minutes
    if restarts:
        state += f", {restarts} restart{'' if restarts == 1 else 's'} in 10 min"
    return state


def _placed(service: ServiceState) -> Iterator[str]:
    now, planned = service.cpus_now, service.planned_cpus
    if service.placed == "ok" and now == planned:
        yield "as planned"
    elif service.placed == "drift":
        yield "not as planned"
    if (service.placed or now != planned) and now:
        yield f"CPUs {shorten(now)}{f', planned {shorten(planned)}' if now != planned else ''}"
    if service.listen and service.state == "running":
        more = f" and {len(service.listen) - _MOST_ADDRESSES} more" if len(service.listen) > _MOST_ADDRESSES else ""
        yield f"on {' '.join(service.listen[:_MOST_ADDRESSES])}{more}"


def _speed(service: ServiceState) -> Iterator[str]:
    if serving := service.serving:
        yield f"{rate(serving.requests_per_second)} requests/s"
        if serving.p99_seconds is not None:
            yield f"p99 under {span(serving.p99_seconds)}"
        errors = serving.errors_per_second
        yield f"{rate(errors)} errors/s" if errors else "no errors"
        yield f"{serving.queued_requests} queued"
    throughput = service.throughput
    if throughput is None:
        return
    if service.hang is None:
        samples, steps = throughput.samples_per_second, throughput.steps_per_second
        yield f"{rate(samples)} samples/s" if samples else f"{rate(steps)} steps/s"
        if throughput.loader_wait_share < LOADER_BOUND:
            yield f"waits {100 * throughput.loader_wait_share:.0f} % for data"
    yield f"step {throughput.steps}"
    if service.checkpoint_age_seconds is not None:
        yield f"saved {span(service.checkpoint_age_seconds)} ago"


def _use(service: ServiceState) -> Iterator[str]:
    if service.cpus_used is not None:
        yield f"CPU {service.cpus_used:.1f}{f' of {service.given_cpus_now}' if service.given_cpus_now else ''}"
    if service.memory_bytes is not None:
        limit = service.memory_limit_bytes
        yield f"memory {size(service.memory_bytes)}{f' of {size(limit)}' if limit else ''}"

