"""Services that share CPUs on a booted Debian: torchpard divides what they are planned on, and knows it when killed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, TRAIN, apply

DAEMON = "torchpard.service"
A, B = TRAIN.format("a"), TRAIN.format("b")

# Says on which CPUs its first line runs, starts a thread that starts another, and goes on.
JOB = """
import os, threading, time
print("CPUs", sorted(os.sched_getaffinity(0)), flush=True)
def sit(more):
    if more:
        threading.Thread(target=sit, args=(more - 1,)).start()
    time.sleep(3600)
threading.Thread(target=sit, args=(2,)).start()
time.sleep(3600)
"""
TWO = "[Host]\nCPUs=0-1\n[Train a]\nScript=/srv/sit.py\n[Train b]\nScript=/srv/sit.py\n"


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with two services that are started by hand; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/sit.py", JOB)
    apply(machine, TWO)
    machine.run("systemctl", "restart", DAEMON)
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*' 'torchpar-infer@*'; systemctl reset-failed")
    apply(machine, shipped)
    machine.run("systemctl", "start", DAEMON)


def masks(machine: Machine, unit: str) -> set[str]:
    """The CPUs of all threads of a service."""
    pid = machine.show(unit, "MainPID")
    return set(machine.sh(f"grep -h Cpus_allowed_list /proc/{pid}/task/*/status | cut -f2").stdout.split())


def moved(machine: Machine) -> dict[str, Any]:
    """What `torchpar status` says of those that were moved, by unit."""
    answer = json.loads(machine.run("torchpar", "status", "--json", check=False).stdout)
    # Without torchpard nobody says.
    rows = answer.get("moved", ())
    return {row["unit"]: row for row in rows}


def first_line(machine: Machine, unit: str, again: str = "systemctl restart $1") -> str:
    """What the first line of a service says, once it is started, or started again, and torchpard had the time to
    answer: on a busy host that may take longer than a start waits."""
    while True:
        before = len(machine.journal(unit))
        machine.sh(again, unit)
        machine.wait_until(lambda before=before: "CPUs [" in machine.journal(unit)[before:], "it is started")
        said = machine.journal(unit)[before:]
        if "torchpard has not said" not in said:
            return re.findall(r"CPUs \[.*?\]", said)[-1]


def test_one_that_starts_has_its_part_before_its_first_line_and_the_other_makes_room(host: Machine) -> None:
    """And when it ends, the other has all again: also where torchpard was killed meanwhile, or is stopped."""
    host.run("systemctl", "start", A)
    host.wait_until(lambda: "CPUs [0, 1]" in host.journal(A), "the first runs on both")
    assert first_line(host, B) == "CPUs [1]"
    host.wait_until(lambda: masks(host, A) == {"0"}, "the first has made room with all threads")
    assert moved(host)[A]["cpus"] == "0" and moved(host)[B]["cpus"] == "1"
    said = host.run("torchpar", "status").stdout
    assert "train@a has CPUs 0 of its 0-1 since " in said
    assert "train@a has CPUs 0 of its 0-1, which it shares with train@b" in host.journal(DAEMON)
    assert host.run("torchpar", "verify").returncode == 0

    pid = host.show(DAEMON, "MainPID")
    host.sh("kill -KILL $1", pid)
    assert masks(host, A) == {"0"}
    host.wait_until(lambda: host.show(DAEMON, "MainPID") not in ("0", pid), "it comes back")
    host.wait_until(lambda: set(moved(host)) == {A, B}, "and knows them")
    host.run("systemctl", "stop", B)
    host.wait_until(lambda: masks(host, A) == {"0-1"}, "all of them are back")

    host.run("systemctl", "start", B)
    host.wait_until(lambda: masks(host, A) == {"0"} and masks(host, B) == {"1"}, "they share again")
    host.run("systemctl", "stop", DAEMON)
    assert masks(host, A) == masks(host, B) == {"0-1"}


def test_one_that_is_started_anew_after_a_failure_waits_for_its_part_again(host: Machine) -> None:
    """systemd may use its control group again."""
    host.run("systemctl", "start", A, B)
    host.wait_until(lambda: masks(host, A) | masks(host, B) == {"0", "1"}, "they share")
    kill = "kill -KILL $(systemctl show --property=MainPID --value $1)"
    assert first_line(host, A, again=kill) in ("CPUs [0]", "CPUs [1]")


def test_a_job_that_is_not_declared_counts_too(host: Machine) -> None:
    host.run("systemctl", "start", A)
    with host.start("torchpar", "run", "--", "/srv/sit.py"):
        host.wait_until(lambda: masks(host, A) in ({"0"}, {"1"}), "the service makes room")
        host.sh("systemctl stop 'torchpar-run-*'")
    host.wait_until(lambda: masks(host, A) == {"0-1"}, "and has all again")


# Says on which CPUs another runs while this one's first line does.
OWNER = """
import os, time
other = int(open("/srv/other").read())
print("CPUs", sorted(os.sched_getaffinity(0)), "OTHER", sorted(os.sched_getaffinity(other)), flush=True)
time.sleep(3600)
"""
LENDING = (
    "[Host]\nCPUs=0-1\nReserveCores=0\n[Train a]\nScript=/srv/sit.py\nEnabled=yes\nCPUs=0-0\nBorrow=yes\n"
    "[Train b]\nScript=/srv/owner.py\nEnabled=yes\nCPUs=1-1\nLend=yes\n"
)


def test_a_stopped_owner_lends_its_cpus_and_has_them_back_before_its_first_line(host: Machine) -> None:
    """Whatever the borrower does with its threads; also where torchpard is killed in between."""
    host.write("/srv/owner.py", OWNER)
    apply(host, LENDING)
    host.run("systemctl", "start", A)
    host.wait_until(lambda: masks(host, A) == {"0-1"}, "it has what the other does not need")
    host.write("/srv/other", host.show(A, "MainPID"))
    assert "train@a borrows CPUs 1 of train@b: it has CPUs 0-1" in host.journal(DAEMON)
    said = host.run("torchpar", "status").stdout
    assert re.search(r"train@a has CPUs 0-1 since [\d:]{8}: it borrows 1 of train@b", said), said
    assert host.run("torchpar", "verify").returncode == 0
    for _ in range(2):
        assert first_line(host, B).startswith("CPUs [1]") and "CPUs [1] OTHER [0]" in host.journal(B)
        assert masks(host, A) == {"0"} and host.run("torchpar", "verify").returncode == 0
        host.run("systemctl", "stop", B)
        host.wait_until(lambda: masks(host, A) == {"0-1"}, "it has them again")

    pid = host.show(DAEMON, "MainPID")
    host.sh("kill -KILL $1; systemctl start $2", pid, B)
    host.wait_until(lambda: host.show(DAEMON, "MainPID") not in ("0", pid), "it comes back")
    host.wait_until(lambda: masks(host, A) == {"0"}, "and takes back what was lent")
    assert masks(host, B) == {"1"}
    host.run("systemctl", "stop", B)
    host.wait_until(lambda: masks(host, A) == {"0-1"}, "it has them again")
    host.run("systemctl", "stop", DAEMON)
    assert masks(host, A) == {"0"}


# In place of the server: it is ready, says that it is idle, and at SIGUSR1 that it has a request; then how many
# milliseconds later the other is off its CPU.
SERVER = """
import os, signal, socket, time
address = os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1)
mark = os.path.join(os.environ["RUNTIME_DIRECTORY"], "idle")
other = int(open("/srv/other").read())
def asked(*_):
    began = time.monotonic()
    os.unlink(mark)
    while os.sched_getaffinity(other) != {0}:
        time.sleep(0.001)
    print("back after", round(1000 * (time.monotonic() - began)), "ms", flush=True)
signal.signal(signal.SIGUSR1, asked)
open(mark, "w").close()
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", address)
while True:
    time.sleep(1)
"""


def test_an_idle_owner_has_its_cpus_back_at_its_first_request(host: Machine) -> None:
    unit = "torchpar-infer@d.service"
    drop_in = f"/etc/systemd/system/{unit}.d/server.conf"
    host.write("/srv/server.py", SERVER)
    host.write("/srv/d.pt", "")
    host.write(drop_in, "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /srv/server.py\nWatchdogSec=0\n")
    owner = "[Infer d]\nModel=/srv/d.pt\nEnabled=yes\nCPUs=1-1\nLend=yes\n"
    apply(host, LENDING.partition("[Train b]")[0] + owner)
    host.run("systemctl", "start", A)
    host.write("/srv/other", host.show(A, "MainPID"))
    host.run("systemctl", "start", unit)
    host.wait_until(lambda: masks(host, A) == {"0-1"}, "it lends what it does not need")
    host.wait_until(lambda: unit in moved(host) and moved(host)[unit]["lent_to"] == "train@a", "status says so")
    assert masks(host, unit) == {"1"}
    host.sh("systemctl kill --kill-whom=main --signal=SIGUSR1 $1", unit)
    host.wait_until(lambda: "back after " in host.journal(unit), "the other makes room")
    assert masks(host, A) == {"0"}
    host.sh("systemctl stop $1; rm -r /etc/systemd/system/$1.d; systemctl daemon-reload", unit)
