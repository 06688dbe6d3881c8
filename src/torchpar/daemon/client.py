"""Asks torchpard for its state."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchpar.contract.paths import ROOT_STATUS_SOCKET, STATUS_SOCKET
from torchpar.contract.typed_json import ShapeError, Text, parse_json, shape

_SECONDS = 15.0  # a look that it takes first may have to wait for a disk that does not answer
_DOOR_SECONDS = 0.5
_LIMIT = 2**26


@dataclass(frozen=True)
class _Item:
    what: str
    verdict: str
    actual: Text


@dataclass(frozen=True)
class _Policy:
    policy: str
    nodes: str


@dataclass(frozen=True)
class _Throughput:
    loader_wait_share: float
    silent_seconds: float
    samples_per_second: float
    steps_per_second: float
    bound: str


@dataclass(frozen=True)
class _Service:
    """The fields of a service that commands print."""

    unit: str
    kind: str
    name: str
    state: str
    in_force: bool
    placed: str | None
    cpus: str
    threads: tuple[int, ...]
    memory_policy: _Policy
    allocator: str
    items: tuple[_Item, ...]
    loading: Text | None
    throughput: _Throughput | None


@dataclass(frozen=True)
class _Answer:
    version: int
    generation: int | None
    conf: str
    services: tuple[_Service, ...]
    notices: tuple[Text, ...]


def ask_daemon() -> dict[str, Any] | None:
    """Asks torchpard for the state, as JSON data; None when it is not there, refuses, or is of another version."""
    until = time.monotonic() + _SECONDS
    data = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(_SECONDS)
            _connect(door)
            while len(data) <= _LIMIT and time.monotonic() < until and (chunk := door.recv(65536)):
                data += chunk
    except OSError:
        return None
    return parse_answer(data)


def _connect(door: socket.socket) -> None:
    """Connects, also where many others are waiting at the door for a moment (EAGAIN). Raises OSError."""
    until = time.monotonic() + _DOOR_SECONDS
    while True:
        try:
            return door.connect(ROOT_STATUS_SOCKET if os.geteuid() == 0 else STATUS_SOCKET)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def why_no_answer() -> str:
    """Says why ask_daemon() has no answer."""
    if os.path.exists(STATUS_SOCKET) and not os.access(STATUS_SOCKET, os.W_OK):
        return "torchpard answers root and the members of the group torchpar only"
    return "torchpard does not answer (systemctl status torchpard)"


def parse_answer(data: bytes) -> dict[str, Any] | None:
    """Parses the answer into JSON data; None where this torchpar does not understand it."""
    try:
        answer = parse_json(data)
        shape(answer, _Answer)
    except ShapeError:
        return None
    assert isinstance(answer, Mapping)  # by its shape
    return dict(answer) if answer["version"] == 1 else None
