"""CPUs that go and come on a booted Debian: torchpard has services placed anew, and those that could not start started.

The kernel's CPUs stay as they are: one more is pretended, on which nothing can run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, apply, held_cpus
from tests.machines.test_arbitration import DAEMON, JOB, A, masks

LAST = os.cpu_count() or 1
HOST = "[Host]\nReserveCores=0\n"
ONE = f"{HOST}[Train a]\nScript=/srv/sit.py\nEnabled=yes\nCPUs=1\n"
BESIDE = f"[Train b]\nScript=/srv/sit.py\nEnabled=yes\nCPUs=0-{LAST - 1}\n"
FOLLOWING = "[Host]\nCPUs=0-1\nReserveCores=0\nHotplug=follow\n[Train a]\nScript=/srv/sit.py\nEnabled=yes\n"


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/sit.py", JOB)
    yield machine
    machine.pretend_cpus(None)
    machine.sh("systemctl stop 'torchpar-train@*'; systemctl reset-failed; rm -f /run/torchpar-fallback/*")
    apply(machine, shipped)
    machine.run("systemctl", "restart", DAEMON)


def state(machine: Machine) -> dict[str, Any]:
    """What `torchpar status` says."""
    answer: dict[str, Any] = json.loads(machine.run("torchpar", "status", "--json", check=False).stdout)
    return answer


def marks(machine: Machine) -> list[str]:
    """What is wrong with the service as it is placed with less than it had."""
    (row,) = (row for row in state(machine)["services"] if row["unit"] == A)
    return [wrong["text"] for wrong in row["wrong"] if wrong["what"] == "fallback"]


def test_a_service_whose_cpus_have_gone_runs_on_others_and_is_placed_as_before_when_they_are_back(
    host: Machine,
) -> None:
    """systemd ends its start with 215; status marks it, and its journal has each step."""
    host.pretend_cpus(f"0-{LAST}")
    apply(host, ONE + BESIDE)
    # It stays where it is.
    host.write(CONF, ONE)
    host.run("torchpar", "apply")
    assert f"CPUAffinity={LAST}\n" in host.sh("systemctl cat $1", A).stdout
    host.pretend_cpus(None)
    assert host.run("systemctl", "start", A, check=False).returncode == 1
    host.wait_until(lambda: host.show(A, "ActiveState") == "active", "it runs all the same")
    assert int(held_cpus(host, "a")) < LAST
    said = host.journal(DAEMON)
    assert "could not start: its CPUs cannot be set (CPU affinity); it is started again with a placement" in said
    host.wait_until(lambda: bool(marks(host)), "status marks it")
    assert f"which had CPUs 0-{LAST}, since its start had failed" in marks(host)[0]
    assert host.run("torchpar", "status", check=False).returncode == 1

    # Whoever stops torchpard meanwhile does not take the way back.
    host.run("systemctl", "stop", DAEMON)
    host.pretend_cpus(f"0-{LAST}")
    host.run("systemctl", "start", DAEMON)
    host.wait_until(lambda: not marks(host) and not state(host)["wrong"], "it is placed as before")
    assert host.show(A, "ActiveState") == "active"


def test_with_hotplug_follow_a_service_that_runs_follows_the_cpus_that_there_are(host: Machine) -> None:
    apply(host, FOLLOWING)
    host.run("systemctl", "start", A)
    host.wait_until(lambda: masks(host, A) == {"0-1"}, "it runs on both")
    host.pretend_cpus("0")
    host.wait_until(lambda: masks(host, A) == {"0"}, "it follows")
    host.pretend_cpus(None)
    host.wait_until(lambda: masks(host, A) == {"0-1"}, "and has both again")
    assert host.show(A, "NRestarts") == "0"
