"""Messages between the first process of a service and those that serve: JSON objects, each whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import Any

# Bytes of a message, which is one packet, at the most; texts in it are cut to so many characters.
LARGEST = 1 << 18
TEXT = 4000


class Channel:
    """One end of a pair. Nothing here blocks; a message that does not fit is lost, as one that nobody reads."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        door.setblocking(False)

    def fileno(self) -> int:
        """Returns the descriptor for an event loop's add_reader."""
        return self._door.fileno()

    def send(self, **message: Any) -> bool:
        """Sends a message; False when it is lost, as the other end is gone or reads nothing, or it is too large."""
        return self._send([], message)

    def send_file(self, fd: int, **message: Any) -> bool:
        """Sends a message with a descriptor, which stays open here; False when it is lost."""
        return self._send([fd], message)

    def _send(self, files: list[int], message: dict[str, Any]) -> bool:
        cut = {name: value[:TEXT] if isinstance(value, str) else value for name, value in message.items()}
        data = json.dumps(cut).encode()
        try:
            if files:
                socket.send_fds(self._door, [data], files)
            else:
                self._door.send(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        except OSError as error:
            # The latter: more sockets are on their way than the service may have open.
            if error.errno not in (errno.EMSGSIZE, errno.ETOOMANYREFS):
                raise
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """Returns the next message: empty when there is none now, None when the other end is gone.

        A descriptor that came with it is its "file", which is not there where this process may have no further one.
        """
        try:
            data, files, _, _ = socket.recv_fds(self._door, LARGEST, 1)
        except BlockingIOError:
            return {}
        except ConnectionResetError:
            return None
        message: dict[str, Any] | None = json.loads(data) if data else None
        if message is not None and files:
            os.set_inheritable(files[0], False)  # what a model starts would keep a client's connection open
            message["file"] = files[0]
        return message

    def close(self) -> None:
        """Gives it up."""
        self._door.close()


def make_pair() -> tuple[Channel, socket.socket]:
    """Our end, and the socket to pass to the other process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), theirs
