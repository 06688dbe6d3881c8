"""The server's end of one worker process."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence

from torchpar.serve.columns import Column, Computed
from torchpar.serve.errors import ServeError
from torchpar.serve.workers.memory import Memory, end_of

# Where a batch's tensors lie, in one packet; a model has a few, and a message of an error is cut.
PACKET = 1 << 16


class WorkerDied(Exception):
    """The process at the other end is gone."""


class Lane:
    """A socket and a memory that one worker process has the other ends of."""

    def __init__(self) -> None:
        self._socket, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fd = os.memfd_create("torchpar-lane")
        self._memory = Memory(self._fd)
        self.pid: int | None = None

    def far_ends(self) -> list[int]:
        """The descriptors for the worker."""
        return [self._far.fileno(), self._fd]

    def handed_over(self, pid: int) -> None:
        """The worker has them: only it may hold its end, so that its death is seen."""
        self._far.close()
        self.pid = pid

    def compute(self, names: Sequence[str], columns: Sequence[Column], quiet: bool = False) -> Computed:
        """Run a batch there. Raises WorkerDied, and ServeError with what the model raised."""
        places = self._memory.write(list(zip(names, columns)))
        ready = time.monotonic()
        try:
            self._socket.send(json.dumps({"inputs": places, "end": end_of(places), "quiet": quiet}).encode())
            packet = self._socket.recv(PACKET)
        except OSError:
            packet = b""
        if not packet:
            raise WorkerDied
        end = time.monotonic()
        reply = json.loads(packet)
        if "error" in reply:
            raise ServeError(reply["status"], reply["error"])
        return Computed([self._memory.read(place) for place in reply["outputs"]], ready, end)

    def close(self) -> None:
        """The worker sees the end of its socket, and ends."""
        self._socket.close()
        self._far.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
