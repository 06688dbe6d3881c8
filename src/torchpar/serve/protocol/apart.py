"""Processes that read and write large JSON: here it would hold Python's lock for seconds, whichever thread does it.

They are started when they are needed, import no torch, and end with the server.
"""

from __future__ import annotations

import gc
import io
import math
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torchpar
from torchpar.serve.errors import ServeError
from torchpar.serve.limits import ROOM
from torchpar.serve.protocol.elements import pack_bytes, unpack_bytes
from torchpar.serve.tensors import Tensor
from torchpar.serve.trim import trim

# Below so many bytes the way there and back costs more than it is worth.
LEAST = 256 * 1024

# Seconds after which a process that has nothing to do ends.
IDLE_SECONDS = 20.0

# The event loop goes first where both want one CPU.
NICE = 5

# The server's own copy of torchpar, before anything else of that name; the job's PYTHONPATH stays as it is.
_START = "import sys; sys.path.insert(0, {!r}); from torchpar.serve.protocol.apart import main; main({})"
_SIZE = struct.Struct("<Q")


class _Room:
    """Waits until there is room for so many bytes more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= ROOM)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


class Apart:
    """As many of them as are used at the same time."""

    def __init__(self) -> None:
        self._room = _Room()
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False
        self._timer: threading.Timer | None = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a module's function in another process, for its result or error. Called in a thread that may wait.

        ServeError comes back as it is; 503 where the process died.
        """
        message = _pickled((function, arguments))
        with self._room.take(len(message)):
            what, result = self._ask(message)
        if what == "bug":
            raise RuntimeError(result)
        if what == "refused":
            raise result
        return result

    def _ask(self, message: memoryview) -> tuple[str, Any]:
        while True:
            with self._lock:
                idle = self._idle.pop() if self._idle else None
            process = idle
            try:
                process = process or _Process()
                answer: tuple[str, Any] = process.ask(message)
                break
            except (OSError, EOFError):
                if process:
                    process.close()
                if idle is None:
                    text = "the process that reads and writes large JSON has ended; try again"
                    raise ServeError(503, text, 1.0) from None
        with self._lock:
            if not self._closed:
                process.since = time.monotonic()
                self._idle.append(process)
                self._watch()
        if self._closed:
            process.close()
        return answer

    def _watch(self) -> None:
        """See to it that none stays for nothing. Needs the lock."""
        if self._timer is None and self._idle:
            self._timer = threading.Timer(IDLE_SECONDS, self._end_idle)
            self._timer.daemon = True
            self._timer.start()

    def _end_idle(self) -> None:
        with self._lock:
            self._timer = None
            least = time.monotonic() - IDLE_SECONDS
            ended = [process for process in self._idle if process.since <= least]
            self._idle = [process for process in self._idle if process.since > least]
            self._watch()
        for process in ended:
            process.close()

    def pids(self) -> list[int]:
        """Returns the process numbers of the processes that have nothing to do."""
        return [process.pid for process in self._idle]

    def close(self) -> None:
        """Ends them."""
        self._closed = True
        with self._lock:
            idle, self._idle = self._idle, []
            if self._timer is not None:
                self._timer.cancel()
        for process in idle:
            process.close()


class _Process:
    def __init__(self) -> None:
        folder = os.path.dirname(os.path.dirname(os.path.abspath(torchpar.__file__)))
        self._socket, far = socket.socketpair()
        with far:
            words = [sys.executable, "-c", _START.format(folder, far.fileno())]
            self._process = subprocess.Popen(words, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL)
        self.pid = self._process.pid
        self.since = 0.0  # when it had nothing to do any more

    def ask(self, message: memoryview) -> Any:
        _send(self._socket, message)
        return _receive(self._socket)

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


def main(fd: int) -> None:
    """Does what is asked on a socket until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, which the server answers
    os.nice(NICE)
    gc.disable()  # values of JSON have no cycles, and there are millions to look through
    channel = socket.socket(fileno=fd)
    while True:
        try:
            function, arguments = _receive(channel)
        except (EOFError, ConnectionError):
            return
        answer: tuple[str, Any]
        try:
            answer = "done", function(*arguments)
        except ServeError as error:
            answer = "refused", error
        except Exception:  # a bug, or no memory: who asked says so
            answer = "bug", traceback.format_exc()
        del arguments
        _send(channel, _pickled(answer))
        del answer
        trim()


class _Pickler(pickle.Pickler):
    """Puts the elements of BYTES together: to make millions of them at once takes Python's lock for long."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, memoryview):
            return bytes, (bytes(value),)
        if isinstance(value, Tensor) and isinstance(value.data, list):
            return _strings, (value.name, value.datatype, value.shape, pack_bytes(value.data))
        if isinstance(value, ServeError):
            return ServeError, (value.status, value.message, value.retry_after)
        return NotImplemented


def _strings(name: str, datatype: str, shape: tuple[int, ...], packed: bytes) -> Tensor:
    return Tensor(name, datatype, shape, unpack_bytes(name, math.prod(shape), memoryview(packed)))


def _pickled(message: Any) -> memoryview:
    text = io.BytesIO()
    _Pickler(text, 5).dump(message)
    return text.getbuffer()


def _send(channel: socket.socket, view: memoryview) -> None:
    channel.sendall(_SIZE.pack(len(view)))
    channel.sendall(view)


def _receive(channel: socket.socket) -> Any:
    (size,) = _SIZE.unpack(_read(channel, _SIZE.size))
    return pickle.loads(_read(channel, size))


def _read(channel: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view, offset = memoryview(found), 0
    while offset < size:
        count = channel.recv_into(view[offset:])
        if not count:
            raise EOFError
        offset += count
    return found
