"""The server's end of one worker process."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.errors import Lasting, ModelError, ServeError
from torchpar.serve.runners.memory import Memory, end_of

# Where a batch's tensors lie, in one packet; of hundreds of tensors it is in the memory, and the packet says where.
PACKET = 1 << 16


class WorkerDied(Exception):
    """The process at the other end is gone."""


def send(channel: socket.socket, memory: Memory, message: dict[str, Any], end: int) -> None:
    """Sends a message, whatever its size; `end` is the first free byte of the memory."""
    text = json.dumps(message).encode()
    if len(text) > PACKET:
        memory.reach(end + len(text))
        memory.view[end : end + len(text)] = text
        text = json.dumps({"start": end, "size": len(text)}).encode()
    channel.send(text)


def receive(channel: socket.socket, memory: Memory) -> dict[str, Any] | None:
    """Returns the next message; None at the end."""
    text = channel.recv(PACKET)
    if not text:
        return None
    message: dict[str, Any] = json.loads(text)
    if "start" in message:
        start, end = message["start"], message["start"] + message["size"]
        memory.reach(end)
        message = json.loads(bytes(memory.view[start:end]))
    return message


class Worker:
    """One worker process, as the server has it: a socket and a memory of which it has the other ends."""

    def __init__(self) -> None:
        self._socket, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fd = os.memfd_create("torchpar-worker")
        self._memory = Memory(self._fd)
        self._start = 0  # what lies before this is kept by the program
        self.pid: int | None = None

    def far_ends(self) -> list[int]:
        """Returns the descriptors for the worker."""
        return [self._far.fileno(), self._fd]

    def handed_over(self, pid: int) -> None:
        """Closes our copy of the worker's end of the socket: only it may have that open, so that its death is seen."""
        self._far.close()
        self.pid = pid

    def loaded(self) -> None:
        """Waits until a worker has loaded the model by itself. Raises WorkerDied, and ModelError with what failed."""
        try:
            reply = receive(self._socket, self._memory)
        except OSError:
            reply = None
        if reply is None:
            raise WorkerDied
        if "error" in reply:
            raise ModelError(reply["error"])

    def compute(self, names: Sequence[str], columns: Sequence[Column], quiet: bool = False) -> Computed:
        """Runs a batch there. Raises WorkerDied, and ServeError with what the model raised."""
        places = self._memory.write(list(zip(names, columns)), self._start)
        ready = time.monotonic()
        try:
            end = max(self._start, end_of(places))
            send(self._socket, self._memory, {"inputs": places, "end": end, "quiet": quiet}, end)
            reply = receive(self._socket, self._memory)
        except OSError:
            reply = None
        if reply is None:
            raise WorkerDied
        done = time.monotonic()
        if reply["kept"]:
            self._start = end
        if "error" in reply:
            error = ServeError(reply["status"], reply["error"])
            error.lasting = Lasting(reply["lasting"]) if reply["lasting"] else None
            raise error
        return Computed([self._memory.read(place) for place in reply["outputs"]], ready, done)

    def close(self) -> None:
        """Closes our end of the socket: the worker sees that, and ends."""
        self._socket.close()
        self._far.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
