"""Load for a server: clients that each wait for their answers (wrk), and requests that come whatever the server does.

A closed loop finds the capacity. The open loop finds how long requests take at a part of it: they come at random times,
and a time counts from when a request should have been sent, so that a server that stalls is not asked less.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.serve_peers import Question


@dataclass(frozen=True)
class Measured:
    """What one run found; times in milliseconds, cpu_us the server's CPU time for each answer in microseconds."""

    per_second: float
    p50: float
    p99: float
    errors: int
    cpu_us: float


def closed_loop(port: int, question: Question, connections: int, seconds: float, pid: int) -> Measured:
    """So many connections, each with one request at a time."""
    fields = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in question.headers.items())
    body = "".join(f"\\{byte:03d}" for byte in question.body)
    script = f'wrk.method = "POST"\nwrk.path = "{question.path}"\n{fields}wrk.body = "{body}"\n' + _REPORT
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before = cpu_seconds(pid)
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "60s", "--latency", "-s", file.name]
        done = subprocess.run([*argv, f"http://127.0.0.1:{port}"], check=True, capture_output=True, text=True)
    used = cpu_seconds(pid) - before
    found = dict(re.findall(r"^result (\w+) ([\d.]+)$", done.stdout, re.MULTILINE))
    answers, errors = float(found["answers"]), int(float(found["errors"]))
    return Measured(
        answers / float(found["seconds"]),
        float(found["p50"]),
        float(found["p99"]),
        errors,
        1e6 * used / max(1.0, answers),
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


class _Client(asyncio.Protocol):
    """One connection: requests in, times out. It parses no more of an answer than where it ends."""

    def __init__(self) -> None:
        self.due: deque[float] = deque()
        self.times: list[float] = []
        self.wrong: Counter[str] = Counter()  # statuses that are not 200, and what was asked and never answered
        self.again: Callable[[_Client], None] | None = None  # called after each answer
        self._buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            # With its line end: there is an Inference-Header-Content-Length too.
            place = head.find(b"\r\ncontent-length:")
            size = int(head[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self._buffer) < end + 4 + size:
                return
            self._buffer = self._buffer[end + 4 + size :]
            self.times.append(asyncio.get_running_loop().time() - self.due.popleft())
            if (status := head.split(b" ", 2)[1].decode()) != "200":
                self.wrong[status] += 1
            if self.again:
                self.again(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.give_up()

    def ask(self, request: bytes, due: float) -> None:
        """Send a request that should go out at `due`, in seconds of the loop's clock."""
        self.due.append(due)
        self.transport.write(request)

    def give_up(self) -> None:
        """Count what is not answered yet as wrong."""
        if self.due:
            self.wrong["unanswered"] += len(self.due)
        self.due.clear()


def client_capacity(port: int, question: Question, connections: int, seconds: float) -> float:
    """Answers in a second that the client of the open loop gets when each connection always waits for one.

    It shares the CPUs with the server and costs more than wrk, so what wrk gets is more than this client can ask for.
    """

    async def ask() -> int:
        loop = asyncio.get_running_loop()
        request = _request(question)
        end = loop.time() + seconds

        def again(client: _Client) -> None:
            if loop.time() < end:
                client.ask(request, loop.time())

        clients = []
        for _ in range(connections):
            _, client = await loop.create_connection(_Client, "127.0.0.1", port)
            clients.append(client)
            client.again = again
            again(client)
        await asyncio.sleep(seconds)
        answers = sum(len(client.times) - client.wrong.total() for client in clients)
        await _close(clients)
        return answers

    return asyncio.run(ask()) / seconds


def open_loop(port: int, question: Question, rate: float, seconds: float, pid: int) -> Measured:
    """Requests at random times, `rate` in a second on average, over as many connections as are needed."""
    before = cpu_seconds(pid)
    clients = asyncio.run(_send(port, question, rate, seconds))
    used = cpu_seconds(pid) - before
    times = sorted(time for client in clients for time in client.times)
    wrong: Counter[str] = sum((client.wrong for client in clients), Counter())
    errors = wrong.total()
    if errors:
        print(f"open loop of {rate:.0f}/s over {len(clients)} connections: {dict(wrong)}", file=sys.stderr)
    if not times:
        return Measured(0.0, 0.0, 0.0, errors, 0.0)
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    return Measured(len(times) / seconds, 1e3 * p50, 1e3 * p99, errors, 1e6 * used / len(times))


async def _send(port: int, question: Question, rate: float, seconds: float) -> list[_Client]:
    loop = asyncio.get_running_loop()
    request = _request(question)
    clients: list[_Client] = []
    chance = random.Random(0)
    due = loop.time()
    end = due + seconds
    while due < end:
        due += chance.expovariate(rate)
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        client = next((each for each in clients if not each.due and not each.transport.is_closing()), None)
        if client is None:
            _, client = await loop.create_connection(_Client, "127.0.0.1", port)
            clients.append(client)
        client.ask(request, due)
    await _close(clients)
    return clients


def _request(question: Question) -> bytes:
    fields = {"Host": "127.0.0.1", **question.headers, "Content-Length": str(len(question.body))}
    head = f"POST {question.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + question.body


async def _close(clients: list[_Client]) -> None:
    """Wait for the last answers, half a minute at the most."""
    for _ in range(600):
        if not any(client.due for client in clients):
            break
        await asyncio.sleep(0.05)
    for client in clients:
        client.give_up()
        client.transport.close()


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


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all that descend from it, of those that live."""
    ticks = 0
    for each in tree(pid):
        try:
            with open(f"/proc/{each}/stat", encoding="utf-8") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


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
