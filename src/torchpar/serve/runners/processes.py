"""A model in worker processes: one fork server, and a worker for each compute thread."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torchpar
from torchpar.contract.errors import ExitStatus
from torchpar.contract.journal import Priority, say
from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.errors import ModelError, ServeError
from torchpar.serve.models.files import ModelFile
from torchpar.serve.models.identity import changed, own_files
from torchpar.serve.runners.fork_server import unpacked
from torchpar.serve.runners.runner import Runner
from torchpar.serve.runners.worker import Worker, WorkerDied
from torchpar.serve.tensors import TensorSpec

# The server's own copy of torchpar, before anything else of that name; the job's PYTHONPATH stays as it is.
_START = (
    "import sys; sys.path.insert(0, {0!r});"
    " from torchpar.serve.runners.guard import guard; guard({1});"
    " from torchpar.serve.runners.fork_server import main; main({1}, {2!r})"
)


class ProcessRunner(Runner):
    """devices names accelerators such as "cuda:0", one a slot; empty: the CPU."""

    def __init__(self, file: ModelFile, slots: int, devices: Sequence[str] = ()) -> None:
        self._file = file
        self._devices = list(devices)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False
        if devices:
            self.kind = "KIND_GPU"
        self._apart = False  # each worker loads the model by itself
        own = own_files(file.path)
        description = self._start_fork_server()
        self.files = {path: look and tuple(look) for path, look in description["files"]}
        self._all_files = {**self.files, **own}
        self.platform = description["platform"]
        self.inputs = tuple(map(TensorSpec.from_json, description["inputs"]))
        self.outputs = tuple(map(TensorSpec.from_json, description["outputs"]))
        self.max_batch = description["max_batch"]
        self.guessed = description["guessed"]
        self.example = [unpacked(tensor) for tensor in description["example"]] if "example" in description else None
        self._writes: str = description["writes"]
        self.counts = description["counts"]
        self._names = [spec.name for spec in self.inputs]
        try:
            self._workers: list[Worker | None] = []
            # There may be more threads that compute than workers: those that were started for other models.
            self._turns: list[threading.Lock] = []
            for slot in range(slots):
                self._workers.append(self._fork(slot))
                self._turns.append(threading.Lock())
            for worker in self._workers:
                self._loaded(worker)
        except (OSError, WorkerDied) as error:
            self.close()
            why = str(error) or "one died; see the log"
            raise ModelError(f"{file.path}: its worker processes cannot be started: {why}") from None
        except BaseException:
            self.close()
            raise

    def compute(self, slot: int, columns: Sequence[Column], team: int = 1) -> Computed:
        """See Runner. A worker is one thread: a team would be the fork server's, and does not outlive a fork."""
        slot %= len(self._workers)
        with self._turns[slot]:
            worker = self._workers[slot]
            if worker is None:
                raise ServeError(503, "the worker process is being started again")
            try:
                return worker.compute(self._names, columns, self.quiet)
            except WorkerDied:
                worker.close()
                self._workers[slot] = None
                raise ServeError(503, "the worker process died while it computed this") from None

    def mend(self, slot: int) -> None:
        """Forks a worker where one died; where the fork server is gone too, loads the model again.

        Where that fails it is tried again with the next batch. Where the files are others by now, this process ends:
        its workers would serve another model than those of the service's other processes.
        """
        slot %= len(self._workers)
        with self._lock:
            if self._workers[slot] is not None or self._closed:
                return  # another thread has been here
            try:
                try:
                    if self._devices or self._apart:
                        self._end_if_changed()  # such a worker loads the file itself
                    worker = self._fork(slot)
                except (OSError, WorkerDied):
                    self._stop_fork_server()
                    self._end_if_changed()
                    self._start_fork_server()
                    worker = self._fork(slot)
                self._loaded(worker)
                if self._closed:
                    worker.close()
                    self._stop_fork_server()
                else:
                    self._workers[slot] = worker
            except (OSError, WorkerDied, ModelError) as error:
                why = str(error) or f"{self._file.path}: it died at once"
                say(f"a worker cannot be started again: {why}", Priority.ERROR)

    def _end_if_changed(self) -> None:
        path = changed(self._all_files)
        if path and not self.in_service:
            raise ModelError(f"{self._file.path}: {path} has changed while it was loaded: load it again")
        if path and os.path.exists(self._file.path):  # else it cannot be loaded, which costs this model alone
            say(f"{path} is not what was loaded, and a worker has to load it again: this process ends", Priority.ERROR)
            os._exit(ExitStatus.FAILED)

    def writes(self) -> str:
        """See Runner."""
        return self._writes

    def keep_one(self) -> None:
        """See Runner."""
        others, self._workers = self._workers[1:], self._workers[:1]
        for worker in others:
            if worker:
                worker.close()

    def renew(self) -> None:
        """See Runner. A fork ends, and another is made of what was loaded and never computes."""
        worker, self._workers[0] = self._workers[0], None
        if worker:
            worker.close()
        self.mend(0)

    def pids(self) -> list[int | None]:
        """Returns the workers' process numbers, by slot."""
        return [worker.pid if worker else None for worker in self._workers]

    def close(self) -> None:
        """Ends the workers and the fork server."""
        self._closed = True
        for worker in getattr(self, "_workers", ()):
            if worker:
                worker.close()
        self._stop_fork_server()

    def _start_fork_server(self) -> dict[str, Any]:
        near, far = socket.socketpair()
        loading = json.dumps({"file": asdict(self._file), "devices": self._devices, "apart": self._apart})
        folder = os.path.dirname(os.path.dirname(os.path.abspath(torchpar.__file__)))
        # A worker is one compute thread; with OpenMP told before it starts there is no pool that a fork would break.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(folder, far.fileno(), loading)],
            pass_fds=[far.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        far.close()
        self._control = near
        description = self._hear()
        if description is None:
            status = self._process.wait()
            raise ModelError(f"{self._file.path}: loading it ended the process (status {status}); see the log")
        if "error" in description:
            self._stop_fork_server()
            raise ModelError(description["error"])
        if description.get("threads"):
            say(
                f"{self._file.path}: loading it leaves threads behind ({description['threads']}), which a fork would"
                " lose: every worker process loads it by itself, and they share no memory of the weights",
                Priority.WARNING,
            )
            self._stop_fork_server()
            self._apart = True
            self._start_fork_server()
        return description

    def _stop_fork_server(self) -> None:
        if self._control:
            self._control.close()
            self._control = None
        if self._process:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _fork(self, number: int) -> Worker:
        worker = Worker()
        if self._control is None:
            worker.close()
            raise WorkerDied
        try:
            socket.send_fds(self._control, [number.to_bytes(4, "little")], worker.far_ends())
            reply = self._hear()
        except OSError:
            reply = None
        if reply is None:
            worker.close()
            raise WorkerDied
        worker.handed_over(reply["pid"])
        return worker

    def _loaded(self, worker: Worker | None) -> None:
        """Waits for a worker that loads the model by itself."""
        if worker and (self._apart or self._devices):
            try:
                worker.loaded()
            except BaseException:
                worker.close()
                raise

    def _hear(self) -> dict[str, Any] | None:
        """Reads one line from the fork server; None when it is gone."""
        assert self._control
        line = b""
        while not line.endswith(b"\n"):
            try:
                part = self._control.recv(1 << 20)
            except ConnectionResetError:
                part = b""
            if not part:
                return None
            line += part
        found: dict[str, Any] = json.loads(line)
        return found
