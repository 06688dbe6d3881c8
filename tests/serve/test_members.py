"""The processes as the first one knows them: forks, ends, stops and counts, with channels whose other end is here."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from torchpar.contract.job import JobSettings, RankSettings, ServeSettings
from torchpar.contract.notify import Notifier
from torchpar.serve.supervisor.channel import Channel, make_pair
from torchpar.serve.supervisor.forks import Forked
from torchpar.serve.supervisor.member import Member
from torchpar.serve.supervisor.processes import Processes

pytestmark = pytest.mark.subprocess

SERVE = ServeSettings(
    model="/srv/m.pt", handler=None, listen=(), grpc=(), workers=None, backend="auto", max_batch=None, max_queue=None,
    drain_timeout=10, own=True, processes=2,
)  # fmt: skip
JOB = JobSettings("torchpar-infer@m.service", 1, None, (RankSettings(0, "0", "", 4, 0, ()),), serve=SERVE)


def connect(member: Member) -> Channel:
    """The end of a serving process, which it reads as one."""
    member.channel, theirs = make_pair()
    return Channel(theirs)


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """What forks, as far as anybody waits for it."""
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def ends(processes: Processes) -> list[tuple[int, int]]:
    """Collects the numbers and statuses of those that end."""
    found: list[tuple[int, int]] = []
    processes._over = lambda process, status: found.append((process.number, status))  # type: ignore[method-assign]
    return found


def test_a_fork_that_ends_before_it_says_its_number_is_missed(server: subprocess.Popen[bytes]) -> None:
    """Its channel is at its end, which would be readable for ever."""

    async def run() -> None:
        processes = Processes(JOB, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        process = processes._processes[0]
        theirs = connect(process)
        process.child = Forked(server)
        found = ends(processes)
        assert process.channel
        processes._loop.add_reader(process.channel, processes._hear, process)
        theirs.close()
        for _ in range(9):
            await asyncio.sleep(0)
        assert found == [(0, 1)]

    asyncio.run(run())


def test_a_fork_that_ends_right_after_it_said_its_number_is_missed(server: subprocess.Popen[bytes]) -> None:
    """The signal of its end comes before the message was read, and tells a number that nobody else waits for."""

    async def run() -> None:
        processes = Processes(JOB, [], Notifier())
        processes._loop = asyncio.get_running_loop()
        process = processes._processes[0]
        theirs = connect(process)
        process.child = Forked(server)
        found = ends(processes)
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        theirs.send(pid=pid)
        theirs.close()
        processes._reap()
        assert found == [(0, -signal.SIGKILL)]
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    asyncio.run(run())
