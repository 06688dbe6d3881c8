"""What a service tells systemd of itself."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from torchpar.contract.notify import Notifier


def test_a_backslash_arrives_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd takes one for an escape, and of a line that ends in one it takes nothing of the message."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        Notifier().send(READY="1", STATUS="a\\nb.conf ends in \\")
        assert door.recv(1000) == b"READY=1\nSTATUS=a\\\\nb.conf ends in \\\\"
