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
    machine.sh("systemctl stop 'torchpar-train@*'; systemctl reset-failed")
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
