"""Says in a sentence what a change of a unit means: "train@mlp: InteropThreads 1 → 2". A unified diff has the rest."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from torchpar.contract.errors import printable
from torchpar.contract.job import VARIABLE
from torchpar.contract.typed_json import ShapeError, parse_json
from torchpar.contract.unit_names import shorten
from torchpar.units.changes import Change

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
}
# Follows from others.
_NEVER = ("budget",)
_MOST = 8
_MOST_LETTERS = 60
_LEFT_OUT = "... "

_WHOLE = {
    "added": "is new",
    "removed": "is no longer in the conf",
    "enabled": "starts at boot from now on",
    "disabled": "starts at boot no longer",
}


def say_change(change: Change) -> str:
    """Says what a change means for the service: the first of what differs, and how much more there is."""
    title = shorten(change.unit)
    if change.what in _WHOLE:
        return f"{title}: {_WHOLE[change.what]}"
    found = list(_differences(_settings(change.old), _settings(change.new)))
    more = f"; {len(found) - _MOST} more settings" if len(found) > _MOST else ""
    return f"{title}: {'; '.join(found[:_MOST]) or 'comments alone differ'}{more}"


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    told = set()
    pairs = {key: (old.get(key), new.get(key)) for key in dict.fromkeys((*old, *new))}
    for key, (before, after) in pairs.items():
        if before == after:
            continue
        # Several settings and variables say the same of the CPUs, and of the threads.
        again = (key == "AllowedCPUs" and pairs.get("CPUAffinity") == (before, after)) or (
            key.endswith("_THREADS") and pairs.get("threads") == (before, after)
        )
        was, is_now = _apart(before or "", after or "")
        sentence = f"{_KEYS.get(key) or printable(key, _MOST_LETTERS)} {was} → {is_now}"
        if not again and key not in _NEVER and sentence not in told:
            told.add(sentence)
            yield sentence


def _apart(before: str, after: str) -> tuple[str, str]:
    """Returns two values as words; of long ones without what both begin with, which would be all that is seen."""
    if max(len(before), len(after)) > _MOST_LETTERS:
        same = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
        same = max(before.rfind(" ", 0, same), before.rfind(",", 0, same)) + 1
        if same > len(_LEFT_OUT):
            before, after = f"{_LEFT_OUT}{before[same:]}", f"{_LEFT_OUT}{after[same:]}"
    return printable(before, _MOST_LETTERS) or "none", printable(after, _MOST_LETTERS) or "none"


def _settings(text: str) -> dict[str, str]:
    """Returns the settings of a drop-in: the value of each key, of each variable, and of each field of the job's."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if not equals or line.startswith(("#", ";", "[")):
            continue
        if key != "Environment":
            # An empty one only begins the list anew.
            found[key] = f"{found[key]} {value}" if value and found.get(key) else value
            continue
        name, _, content = _word(value).partition("=")
        if name == VARIABLE:
            found |= _fields(content)
        elif name:
            found[name] = content
    return found


def _word(value: str) -> str:
    """Returns a variable as the job will have it, or as it stands there where it is quoted in another way."""
    try:
        return "".join(shlex.split(value)).replace("%%", "%")
    except ValueError:
        return value


def _fields(text: str) -> dict[str, str]:
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
