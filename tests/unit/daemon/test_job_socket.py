"""The socket for the jobs' messages: who is heard, and that nothing that is sent does harm."""

from __future__ import annotations

import json
import os
import selectors
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from torchpar.daemon.job_socket import Receiver, root_group, unit_of
from torchpar.daemon.throughput import Ledger, Report

MINE = "0::/torchpar.slice/torchpar-train@a.service\n"
MESSAGE = {"version": 1, "local_rank": 0, "time": 1.0, "steps": 1, "samples": 1, "batches": 1, "waited": 0.0}


class Heard(Ledger):
    """Keeps what is recorded, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, int, Report]] = []

    def record(self, unit: str, pid: int, report: Report, now: float) -> None:
        self.records.append((unit, pid, report))


def receiver(tmp_path: Path, read_cgroup: Callable[[int], str]) -> tuple[Receiver, Heard, socket.socket]:
    """One that believes `read_cgroup`, and a socket that is connected to it."""
    heard = Heard()
    made = Receiver(str(tmp_path / "job.sock"), selectors.DefaultSelector(), heard, read_cgroup)
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(str(tmp_path / "job.sock"))
    sender.setblocking(False)
    return made, heard, sender


def test_a_message_counts_for_the_unit_of_its_sender(tmp_path: Path) -> None:
    """The kernel says who sent it; what the text says of a unit is not looked at."""
    made, heard, sender = receiver(tmp_path, lambda pid: MINE if pid == os.getpid() else "")
    sender.send(json.dumps({**MESSAGE, "unit": "torchpar-train@b.service", "pid": 1}).encode())
    made.receive()
    assert [(unit, pid) for unit, pid, _ in heard.records] == [("torchpar-train@a.service", os.getpid())]


def test_every_user_can_send(tmp_path: Path) -> None:
    """A job may run as anybody."""
    receiver(tmp_path, lambda pid: MINE)
    assert stat.S_IMODE(os.stat(tmp_path / "job.sock").st_mode) == 0o666


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """As a killed daemon leaves it behind."""
    (tmp_path / "job.sock").touch()
    made, heard, sender = receiver(tmp_path, lambda pid: MINE)
    sender.send(json.dumps(MESSAGE).encode())
    made.receive()
    assert len(heard.records) == 1


def test_what_is_no_message_is_passed_over(tmp_path: Path) -> None:
    """Empty, too long, not JSON, file descriptors: the next message is heard all the same."""
    made, heard, sender = receiver(tmp_path, lambda pid: MINE)
    for data in (b"", b"x" * 100_000, b" " * 2000 + json.dumps(MESSAGE).encode(), b"\0\xff", b"{}"):
        sender.send(data)
    socket.send_fds(sender, [json.dumps(MESSAGE).encode()], [sender.fileno()] * 50)
    before = len(os.listdir("/proc/self/fd"))
    made.receive()
    sender.send(json.dumps(MESSAGE).encode())
    made.receive()
    assert len(heard.records) <= 2 and heard.records[-1][2].steps == 1
    assert len(os.listdir("/proc/self/fd")) == before


class Flood:
    """A socket in which there is always one more message, every hundredth of process 2, all others of process 1."""

    def __init__(self, real: socket.socket) -> None:
        self.fileno = real.fileno
        self.taken = 0

    def recvmsg(self, *sizes: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        self.taken += 1
        sender = struct.pack("3i", 1 if self.taken % 100 else 2, 0, 0)
        message = json.dumps({**MESSAGE, "steps": self.taken}).encode()
        return message, [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, sender)], 0, None


def test_a_flood_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back after some messages, though there are more, and of each process it has looked at the last."""
    looked: list[int] = []

    def read_cgroup(pid: int) -> str:
        looked.append(pid)
        return MINE

    made, heard, _ = receiver(tmp_path, read_cgroup)
    looked.clear()
    flood = Flood(made._socket)
    monkeypatch.setattr(made, "_socket", flood)
    made.receive()
    assert flood.taken == 1024 and looked == [1, 2]
    assert [(pid, report.steps) for _, pid, report in heard.records] == [(1, 1024), (2, 1000)]
    # Whoever sends waits for a moment, and the loop goes on.
    assert made._selector.get_map() == {}
    while made.resume() is not None:
        assert len(heard.records) == 2
    assert len(made._selector.get_map()) == 1


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        (MINE, "torchpar-train@a.service"),
        ("0::/torchpar.slice/torchpar-train@a\\x2db.service/inner\n", "torchpar-train@a\\x2db.service"),
        ("0::/torchpar.slice/torchpar-x.slice/torchpar-run-1.service\n", "torchpar-run-1.service"),
        ("4:cpu:/other\n1:name=systemd:/torchpar.slice/torchpar-train@a.service\n0::/\n", "torchpar-train@a.service"),
        ("4:cpu:/torchpar.slice/torchpar-train@a.service\n0::/user.slice\n", None),
        ("0::/user.slice/user@0.service/torchpar.slice/torchpar-train@a.service\n", None),
        ("0::/torchpar.slice/other.service\n", None),
        ("0::/torchpar.slice\n", None),
        ("", None),
    ],
)
def test_the_unit_is_that_of_the_control_group(cgroup: str, unit: str | None) -> None:
    """Only in torchpar's own slice: a user's session may have groups of any name."""
    assert unit_of(cgroup, "") == unit
    assert unit_of(cgroup.replace(":/", ":/machine.slice/c/"), "/machine.slice/c") == unit


def test_the_root_is_what_systemds_slices_are_in() -> None:
    """In a container that shows its host's paths they begin further down."""
    assert root_group("0::/system.slice/torchpard.service\n") == ""
    assert root_group("0::/machine.slice/c/system.slice/torchpard.service\n") == "/machine.slice/c"
    assert root_group("0::/user.slice\n") == root_group("") == ""
