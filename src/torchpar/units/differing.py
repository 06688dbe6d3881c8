"""Words how settings differ, as people call them: directives, variables, and the fields of the job's variable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchpar.contract.errors import printable
from torchpar.contract.job import VARIABLE
from torchpar.contract.typed_json import ShapeError, parse_json

# Directives and fields of the job's variable that the conf calls otherwise.
_KEYS = {
    "CPUAffinity": "CPUs",
    "ExecStart": "command",
    "AllowedCPUs": "CPUs of all processes",
    "cpus": "CPUs",
    "loader_cpus": "CPUs of loader workers",
    "ListenStream": "Listen",
    "interop_threads": "InteropThreads",
    "cudnn_benchmark": "CudnnBenchmark",
    "checkpoint_grace": "CheckpointGrace",
    "prefetch_factor": "PrefetchFactor",
    "pin_memory": "PinMemory",
    "max_restarts": "MaxRestarts",
    "nodes": "Nodes",
    "endpoint": "Endpoint",
    "interface": "Interface",
    "elastic": "Elastic",
    "memory_policy": "NUMAPolicy",
    "threads": "Threads",
    "own_threads": "fixed Threads",
    "loader_workers": "LoaderWorkers",
    "serve.model": "Model",
    "serve.handler": "Handler",
    "serve.workers": "Workers",
    "serve.backend": "Backend",
    "serve.max_batch": "MaxBatch",
    "serve.max_queue": "MaxQueue",
    "serve.drain_timeout": "DrainTimeout",
    "serve.drain_delay": "DrainDelay",
    "serve.lend": "Lend",
    "serve.start_timeout": "Service.TimeoutStartSec",
}
# What a field is where the job's variable leaves it out.
_LEFT_OUT_AS = {"own_threads": "no"}
# Follows from others.
_NEVER = ("budget",)
# Of what differs in one unit, that are told.
MOST = 8
_MOST_LETTERS = 60
_LEFT_OUT = "... "
# Of a variable: the kernel takes no longer one (MAX_ARG_STRLEN in execve(2)), and a process may show any.
_MOST_PARSED = 2**17


def say_variable(name: str, actual: str, planned: str) -> list[str]:
    """Says how a variable of a process differs from the planned one; the job's, if it is one, by the first of its
    fields that do."""
    if name != VARIABLE or len(actual) > _MOST_PARSED or VARIABLE in fields(actual):
        return [f"{name}={printable(actual, _MOST_LETTERS)} instead of {printable(planned, _MOST_LETTERS)}"]
    found = list(pairs(fields(actual), fields(planned)))
    more = [f"{len(found) - MOST} more settings"] if len(found) > MOST else []
    return [f"{what} {was} instead of {now}" for what, was, now in found[:MOST]] + more


def pairs(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yields what differs, as people call it, with both of its values in words."""
    told = set()
    both = {
        key: (old.get(key, _LEFT_OUT_AS.get(key)), new.get(key, _LEFT_OUT_AS.get(key)))
        for key in dict.fromkeys((*old, *new))
    }
    for key, (before, after) in both.items():
        if before == after:
            continue
        # Several settings and variables say the same of the CPUs, and of the threads.
        again = (key == "AllowedCPUs" and both.get("CPUAffinity") == (before, after)) or (
            key.endswith("_THREADS") and both.get("threads") == (before, after)
        )
        pair = (_KEYS.get(key) or printable(key, _MOST_LETTERS), *_apart(before or "", after or ""))
        if not again and key not in _NEVER and pair not in told:
            told.add(pair)
            yield pair


def _apart(before: str, after: str) -> tuple[str, str]:
    """Returns two values as words; of long ones without what both begin with, which would be all that is seen."""
    if max(len(before), len(after)) > _MOST_LETTERS:
        same = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
        same = max(before.rfind(" ", 0, same), before.rfind(",", 0, same)) + 1
        if same > len(_LEFT_OUT):
            before, after = f"{_LEFT_OUT}{before[same:]}", f"{_LEFT_OUT}{after[same:]}"
    return printable(before, _MOST_LETTERS) or "none", printable(after, _MOST_LETTERS) or "none"


def fields(text: str) -> dict[str, str]:
    """Returns the fields of the job's variable; of one that torchpar did not make, as it is there, all in one."""
    try:
        data = parse_json(text)
        return dict(_flatten("", data)) if isinstance(data, dict) else {VARIABLE: text}
    except (ShapeError, RecursionError):
        return {VARIABLE: text}


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}" if name else key, inner)
    elif name == "ranks" and isinstance(value, list):
        for number, rank in enumerate(value):
            fields = rank if isinstance(rank, dict) else {"": rank}
            place = "" if len(value) == 1 else f"rank {number} "
            for key, inner in fields.items():
                yield f"{place}{_KEYS.get(key, key) if place else key}", _text(inner)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
