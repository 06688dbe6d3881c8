"""Tells systemd how a service is doing: the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Sends to the socket that systemd named, or nowhere when it named none."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = os.environ.pop("WATCHDOG_USEC", "")
        self.watchdog_seconds = int(usec) / 1e6 if usec.isdecimal() and int(usec) else None

    def send(self, **state: str) -> None:
        """Sends assignments such as READY="1", STATUS="...". Never blocks; a message that cannot be sent is lost."""
        if not self._address:
            return
        # systemd takes a backslash for an escape, and a message that ends in one for none.
        message = "\n".join(f"{key}={value}" for key, value in state.items()).replace("\\", r"\\")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as door:
            try:
                door.sendto(message.encode(), self._address)
            except (BlockingIOError, ConnectionRefusedError, FileNotFoundError):
                # PID 1 is busy or re-executing; the next message comes in time.
                return
