"""Asks torchpard for its state."""

from __future__ import annotations

import json
import socket
from typing import Any

from torchpar.daemon.server import SOCKET

_TIMEOUT = 5.0


def ask_daemon() -> dict[str, Any] | None:
    """What torchpard knows, as JSON data; None when it is not there, or not for this user."""
    chunks = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(_TIMEOUT)
            door.connect(SOCKET)
            while chunk := door.recv(65536):
                chunks.append(chunk)
        answer = json.loads(b"".join(chunks))
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None
