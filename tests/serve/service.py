"""A whole inference service without systemd: its socket, its notifications, its control socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchpar.contract.job import JobSettings, RankSettings, ServeSettings, job_environment

SOURCE = Path(__file__).parents[2] / "src/torchpar"

# What systemd does between fork and exec: file descriptor 3 is the socket, and LISTEN_PID the process itself.
_START = 'exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'


def install(folder: Path) -> Path:
    """serve.py as the package has it below /usr/lib/torchpar, with a link to the package beside it."""
    script = folder / "lib/serve.py"
    if not script.exists():
        script.parent.mkdir()
        shutil.copy(SOURCE / "serve/serve.py", script)
        (script.parent / "torchpar").symlink_to(SOURCE)
    return script


class Service:
    """Started when entered, killed when left. `state` collects what it told systemd, the last value of each."""

    def __init__(
        self, folder: Path, model: Path, *, processes: int = 1, threads: int = 1, each: int | None = None,
        watchdog: float = 0.0, path: Path | None = None, **serve: Any,
    ) -> None:  # fmt: skip
        """processes: one for each rank, with so many threads, which as many as `each` says (Processes=) share.

        path: where its interpreter looks for packages first.
        """
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.address = self.listener.getsockname()
        settings = ServeSettings(
            model=str(model), handler=None, listen=(), grpc=(), workers=None, backend="auto", max_batch=None,
            max_queue=None, drain_timeout=10, own=True, processes=each,
        )  # fmt: skip
        cpus = str(min(os.sched_getaffinity(0)))
        ranks = tuple(RankSettings(i, cpus, "", threads, 0, ()) for i in range(processes))
        self.job = JobSettings("torchpar-infer@m.service", 1, None, ranks, serve=replace(settings, **serve))
        self.folder = folder
        self.script = install(folder)
        self.told: list[tuple[float, str, str]] = []
        self.process: subprocess.Popen[bytes]
        self._watchdog = watchdog
        self._path = path
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(folder / "notify"))

    def __enter__(self) -> Service:
        (self.folder / "log").touch()
        journal = (self.folder / "log").stat()
        environment = {
            "PATH": os.environ["PATH"],
            "JOURNAL_STREAM": f"{journal.st_dev}:{journal.st_ino}",
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            "RUNTIME_DIRECTORY": str(self.folder),
            **job_environment(self.job),
        }
        if self._watchdog:
            environment["WATCHDOG_USEC"] = str(int(self._watchdog * 1e6))
        if self._path:
            environment["PYTHONPATH"] = str(self._path)
        self.environment = environment
        self.start()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.listener.close()
        self._notify.close()

    def start(self) -> None:
        """As systemd does, with the socket that it has kept."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", _START, "sh", sys.executable, "-B", str(self.script)],
                stdin=self.listener, env=self.environment, stderr=log, stdout=log, start_new_session=True,
            )  # fmt: skip

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._notify.recv(65536):
                for line in data.decode().splitlines():
                    name, _, value = line.partition("=")
                    self.told.append((time.monotonic(), name, value))

    def log(self) -> str:
        """All that it printed, as the journal gets it."""
        return (self.folder / "log").read_text()

    def count(self, name: str) -> int:
        """How many times it told systemd this."""
        return sum(told == name for _, told, _ in self.told)

    def status(self) -> str:
        """The last STATUS=."""
        return next((value for _, name, value in reversed(self.told) if name == "STATUS"), "")

    def wait(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Until it is true. Fails with the log when it does not get so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{self.told}\n{self.log()}"
            time.sleep(0.01)

    def wait_ready(self, times: int = 1) -> None:
        self.wait(lambda: self.count("READY") >= times or self.process.poll() is not None)
        assert self.count("READY") >= times, self.log()

    def children(self) -> list[int]:
        """The serving processes; what forks them where there are several serves nothing."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in path.read_text().split()]
        return [pid for pid in pids if _has_gauge(pid)]

    def group(self) -> list[int]:
        """All of its processes."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        return [pid for pid in pids if _group_of(pid) == self.process.pid]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=300)

    def infer(self, connection: http.client.HTTPConnection | None = None) -> list[float]:
        """One request for one row; what came back."""
        connection = connection or self.connect()
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}
        connection.request("POST", "/v2/models/m/infer", json.dumps(body))
        answer = connection.getresponse()
        data = json.loads(answer.read())
        assert answer.status == 200, data
        return list(data["outputs"][0]["data"])


def _group_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getpgid(pid)
    return None


def _has_gauge(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return any("torchpar-load" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return False


class Load:
    """Clients that ask one thing after the other, on kept connections, until told to end; what went wrong is kept."""

    def __init__(self, service: Service, clients: int = 4) -> None:
        self.service = service
        self.answers: list[list[float]] = []
        self.failures: list[str] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        connection = self.service.connect()
        while not self._end.is_set():
            try:
                self.answers.append(self.service.infer(connection))
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(repr(error))
                connection = self.service.connect()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def wait(self, more: int) -> None:
        """Until there are so many answers more."""
        wanted = len(self.answers) + more
        self.service.wait(lambda: len(self.answers) >= wanted)


def lines(text: str) -> Iterator[str]:
    """The server's own lines of a log."""
    return (line for line in text.splitlines() if line.startswith("torchpar: "))
