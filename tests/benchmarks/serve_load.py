"""Load for a server: clients that each wait for their answers (wrk), and requests that come whatever the server does.

A closed loop finds the capacity. The open loop finds how long requests take at a part of it: they come at random times,
and a time counts from when a request should have been sent, so that a server that stalls is not asked less.
"""

from __future__ import annotations

import gc
import os
import random
import re
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.benchmarks.serve_peers import Question


@dataclass(frozen=True)
class Measured:
    """What one run found; times in milliseconds, CPU time for each answer in microseconds, server's and client's.

    late: what of an open loop's requests 99 % were sent within, from when they were due. The times have that in them.
    """

    per_second: float
    p50: float
    p99: float
    errors: int
    cpu_us: float
    client_us: float
    late: float = 0.0


def closed_loop(port: int, question: Question, connections: int, seconds: float, pid: int) -> Measured:
    """So many connections, each with one request at a time."""
    fields = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in question.headers.items())
    body = "".join(f"\\{byte:03d}" for byte in question.body)
    script = f'wrk.method = "POST"\nwrk.path = "{question.path}"\n{fields}wrk.body = "{body}"\n' + _REPORT
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before, own = cpu_seconds(pid), children_seconds()
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "--timeout", "60s", "--latency"]
        argv += ["-s", file.name]
        done = subprocess.run([*argv, f"http://127.0.0.1:{port}"], check=True, capture_output=True, text=True)
    used, own = cpu_seconds(pid) - before, children_seconds() - own
    found = dict(re.findall(r"^result (\w+) ([\d.]+)$", done.stdout, re.MULTILINE))
    answers, errors = float(found["answers"]), int(float(found["errors"]))
    return Measured(
        answers / float(found["seconds"]),
        float(found["p50"]),
        float(found["p99"]),
        errors,
        1e6 * used / max(1.0, answers),
        1e6 * own / max(1.0, answers),
    )


_REPORT = """
function done(summary, latency, requests)
    local e = summary.errors
    print("result answers " .. summary.requests)
    print("result seconds " .. summary.duration / 1e6)
    print("result p50 " .. latency:percentile(50) / 1e3)
    print("result p99 " .. latency:percentile(99) / 1e3)
    print("result errors " .. e.connect + e.read + e.write + e.status + e.timeout)
end
"""


class _Clients:
    """Connections that belong to independent clients: at most one request at a time on each.

    Sockets and epoll by hand, for asyncio costs as much of a CPU as the server does, and its clock has milliseconds.
    """

    def __init__(self, port: int, question: Question) -> None:
        self.times: list[float] = []  # seconds from when a request was due to its answer
        self.late: list[float] = []  # seconds from when a request was due to when it was sent
        self.wrong: Counter[str] = Counter()  # statuses that are not 200, and what was asked and never answered
        self._address = ("127.0.0.1", port)
        self._request = _request(question)
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._due: dict[int, float] = {}  # when the request of a connection was due, while it has no answer
        self._parts: dict[int, bytes] = {}
        self._idle: list[int] = []
        self._chance = random.Random(1)

    def ask(self, due: float) -> None:
        """Send a request that should go out at `due`, by the clock of time.monotonic, on an idle connection."""
        if self._idle:
            # Any of them: which client is next does not depend on who was answered last.
            place = self._chance.randrange(len(self._idle))
            self._idle[place], self._idle[-1] = self._idle[-1], self._idle[place]
            number = self._idle.pop()
        else:
            new = socket.create_connection(self._address)
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = new.fileno()
            self._sockets[number] = new
            self._epoll.register(number, select.EPOLLIN)
        self._due[number] = due
        self.late.append(time.monotonic() - due)
        try:
            self._sockets[number].sendall(self._request)
        except OSError:
            self._lose(number)

    def take(self, until: float) -> int:
        """Take the answers that come until a time, or until there are some; returns how many."""
        # epoll's own time-out has whole milliseconds.
        select.select([self._epoll], [], [], max(0.0, until - time.monotonic()))
        return sum(self._read(number) for number, _ in self._epoll.poll(0))

    def end(self) -> None:
        """Wait for the last answers, half a minute at the most."""
        until = time.monotonic() + 30.0
        while self._due and time.monotonic() < until:
            self.take(until)
        self.wrong["unanswered"] += len(self._due)
        for each in self._sockets.values():
            each.close()
        self._epoll.close()

    def __len__(self) -> int:
        return len(self._sockets)

    def _read(self, number: int) -> bool:
        """Read what has come; it parses no more of an answer than its status and where it ends."""
        try:
            data = self._sockets[number].recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._lose(number)
            return False
        data = self._parts.pop(number, b"") + data
        end = data.find(b"\r\n\r\n")
        head = data[: max(end, 0)].lower()
        # With its line end: there is an Inference-Header-Content-Length too.
        place = head.find(b"\r\ncontent-length:")
        size = int(head[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if end < 0 or len(data) < end + 4 + size:
            self._parts[number] = data
            return False
        self.times.append(time.monotonic() - self._due.pop(number))
        self._idle.append(number)
        if (status := head.split(b" ", 2)[1].decode()) != "200":
            self.wrong[status] += 1
        return True

    def _lose(self, number: int) -> None:
        """Forget a connection that the server has closed, and count its request as wrong if it has one."""
        if self._due.pop(number, None) is not None:
            self.wrong["unanswered"] += 1
        if number in self._idle:
            self._idle.remove(number)
        self._parts.pop(number, None)
        self._epoll.unregister(number)
        self._sockets.pop(number).close()


def client_capacity(port: int, question: Question, connections: int, seconds: float) -> float:
    """Answers in a second that the client of the open loop gets when each connection always waits for one.

    It shares the CPUs with the server and costs more than wrk, so what wrk gets is more than this client can ask for.
    """
    clients = _Clients(port, question)
    with _on_time():
        until = time.monotonic() + seconds
        for _ in range(connections):
            clients.ask(time.monotonic())
        while (now := time.monotonic()) < until:
            for _ in range(clients.take(until)):
                clients.ask(now)
        answers = len(clients.times) - clients.wrong.total()
        clients.end()
    return answers / seconds


def open_loop(port: int, question: Question, rate: float, seconds: float, pid: int) -> Measured:
    """Requests at random times, `rate` in a second on average, over as many connections as are needed."""
    clients, chance = _Clients(port, question), random.Random(0)
    before, own = cpu_seconds(pid), time.thread_time()
    with _on_time():
        due = time.monotonic()
        end = due + seconds
        while (due := due + chance.expovariate(rate)) < end:
            while time.monotonic() < due:
                clients.take(due)
            clients.ask(due)
        clients.end()
    used, own = cpu_seconds(pid) - before, time.thread_time() - own
    times, errors = sorted(clients.times), clients.wrong.total()
    if errors:
        print(f"open loop of {rate:.0f}/s over {len(clients)} connections: {dict(clients.wrong)}", file=sys.stderr)
    if not times:
        return Measured(0.0, 0.0, 0.0, errors, 0.0, 0.0)
    return Measured(
        len(times) / seconds,
        1e3 * times[len(times) // 2],
        1e3 * times[int(len(times) * 0.99)],
        errors,
        1e6 * used / len(times),
        1e6 * own / len(times),
        1e3 * sorted(clients.late)[int(len(clients.late) * 0.99)],
    )


@contextmanager
def _on_time() -> Iterator[None]:
    """Let this thread run whenever it has something to do, where the kernel permits it.

    Clients are other machines: that they wait for the server's CPUs is not the server's doing. And garbage collection,
    of all that was measured until then, waits.
    """
    gc.disable()
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        pass
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        gc.enable()


def _request(question: Question) -> bytes:
    fields = {"Host": "127.0.0.1", **question.headers, "Content-Length": str(len(question.body))}
    head = f"POST {question.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + question.body


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for each in found:
        try:
            with open(f"/proc/{each}/task/{each}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
        except OSError:
            continue
    return found


def cpu_seconds(pid: int, *, alone: bool = False) -> float:
    """CPU time of a process and all that descend from it, of those that live; alone: of itself."""
    ticks = 0
    for each in [pid] if alone else tree(pid):
        try:
            with open(f"/proc/{each}/stat", encoding="utf-8") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """CPU time of the processes that were started and have ended: between two calls, that of the load's client."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def proportional_mib(pid: int) -> float:
    """Memory of the same, in MiB; of what several share, each has its part."""
    kib = 0
    for each in tree(pid):
        try:
            with open(f"/proc/{each}/smaps_rollup", encoding="ascii") as file:
                kib += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except OSError:
            continue
    return kib / 1024
