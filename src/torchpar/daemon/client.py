"""Asks torchpard for its state."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from torchpar.contract.paths import ROOT_STATUS_SOCKET, STATUS_SOCKET
from torchpar.contract.typed_json import ShapeError, parse_json
from torchpar.daemon.state import parse_state

_SECONDS = 15.0  # a look that it takes first may have to wait for a disk that does not answer
_DOOR_SECONDS = 0.5
_LIMIT = 2**26


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


def may_not_ask() -> bool:
    """Says whether the socket of torchpard is there and this user may not ask at it."""
    return os.path.exists(STATUS_SOCKET) and not os.access(STATUS_SOCKET, os.W_OK)


def parse_answer(data: bytes) -> dict[str, Any] | None:
    """Parses the answer into JSON data; None where this torchpar does not understand it."""
    try:
        answer = parse_json(data)
        parse_state(answer)
    except ShapeError:
        return None
    assert isinstance(answer, Mapping)  # by its shape
    return dict(answer) if answer["version"] == 1 else None
