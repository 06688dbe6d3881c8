"""`torchpar status` on a booted Debian: whatever is wrong with a service is marked, with since when and why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, SCRIPT, TRAIN, apply

DAEMON = "torchpard.service"
FAILS = "print('begins')\ndef f():\n    raise ValueError('bad \\x1b[2J shapes')\nf()\n"
CONF_OF_ALL = (
    "[Train a]\nScript=/srv/job.py\nCPUs=0-0\n[Train b]\nScript=/srv/job.py\nCPUs=0-0\n"
    "[Train loop]\nScript=/srv/fails.py\nService.RestartSec=100ms\n"
    "[Train once]\nScript=/srv/fails.py\nRestart=no\n"
    "[Train killed]\nScript=/srv/job.py\nRestart=no\n"
)


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with these services in force, none of which runs; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/job.py", SCRIPT)
    machine.write("/srv/fails.py", FAILS)
    apply(machine, CONF_OF_ALL)
    yield machine
    machine.sh("systemctl stop 'torchpar-*@*.service'; systemctl unmask --runtime torchpar-train@b")
    machine.run("systemctl", "reset-failed")
    apply(machine, shipped)


def look(machine: Machine, *names: str) -> tuple[int, str, dict[str, dict[str, Any]]]:
    """The exit status, what is shown at 80 columns, as one line, and the services by their names."""
    done = machine.run("env", "COLUMNS=80", "torchpar", "status", *names, check=False)
    assert all(len(line) <= 80 and line.isprintable() for line in done.stdout.split("\n")), done.stdout
    answer = json.loads(machine.run("torchpar", "status", "--json", *names, check=False).stdout)
    return done.returncode, " ".join(done.stdout.split()), {row["name"]: row for row in answer["services"]}


def test_what_is_wrong_is_marked_with_its_reason(host: Machine, progress: Callable[[str], None]) -> None:
    """A failure, a signal, a crash loop, an overlap, a mask, enable, an edit and a newer conf; and nothing at first."""
    assert look(host)[0] == 0
    host.sh("systemctl start torchpar-train@once torchpar-train@loop torchpar-train@killed")
    host.run("systemctl", "kill", "--signal=KILL", TRAIN.format("killed"))
    host.wait_until(lambda: host.show(TRAIN.format("loop"), "Result") == "exit-code", "its first end")
    host.wait_until(lambda: host.show(TRAIN.format("loop"), "ActiveState") == "failed", "systemd gives up")
    said = r"exit status 1: ValueError: bad \x1b[2J shapes; see: torchpar logs train@"
    status, shown, rows = look(host)
    progress(host.run("env", "COLUMNS=80", "torchpar", "status", check=False).stdout)
    assert status == 1 and f" ago {said}once" in shown and f"fails again and again: {said}loop" in shown
    assert " ago killed by SIGKILL; see: torchpar logs train@killed" in shown
    assert re.search(r"! train@loop failed \d+ \w+ ago, \d+ restarts in 10 min", shown)
    assert rows["loop"]["restarts_in_10_minutes"] >= 9 and rows["once"]["restarts_in_10_minutes"] == 0
    assert look(host, "a")[0] == 0 and look(host, "torchpar-train@once.service")[0] == 1
    logs = host.run("torchpar", "logs", "once").stdout
    assert "torchpar-train@once[" in logs and "begins" in logs and "\x1b" not in logs
    host.run("systemctl", "reset-failed")

    host.run("systemctl", "start", TRAIN.format("a"), TRAIN.format("b"))
    status, shown, rows = look(host)
    assert status == 1 and "shares CPUs" in shown and rows["a"]["wrong"] and rows["b"]["wrong"], shown
    host.wait_until(lambda: look(host, "a")[2]["a"]["cpus_used"] is not None, "its CPU time")
    host.run("systemctl", "stop", TRAIN.format("b"))
    assert look(host)[0] == 0
    host.run("systemctl", "mask", "--runtime", TRAIN.format("b"))
    host.run("systemctl", "enable", TRAIN.format("once"))
    override = f"/etc/systemd/system/{TRAIN.format('killed')}.d/override.conf"
    host.write(override, "[Service]\nCPUAffinity=\nCPUAffinity=0\n")
    host.run("systemctl", "daemon-reload")
    assert "train@b.service: is masked" in host.run("torchpar", "apply", "--afresh").stderr
    host.write(CONF, f"{CONF_OF_ALL}Threads=1\n")
    status, shown, rows = look(host)
    progress(host.run("env", "COLUMNS=80", "torchpar", "status", check=False).stdout)
    assert status == 1 and rows["b"]["state"] == "masked" and "systemctl unmask" in shown
    assert "starts at boot by systemctl enable" in shown and f"has CPUAffinity from {override}" in shown
    assert "! the conf is newer than generation" in shown
    assert "changed on disk" not in host.run("systemctl", "start", TRAIN.format("a")).stderr
    host.run("systemctl", "unmask", "--runtime", TRAIN.format("b"))
    host.run("systemctl", "disable", TRAIN.format("once"))
    host.sh('rm -r "${1%/*}"; systemctl daemon-reload', override)
    host.write(CONF, CONF_OF_ALL)
    assert look(host)[0] == 0


def test_who_may_not_ask_is_told_so(host: Machine) -> None:
    """Not that the daemon is dead; and a mistyped name has the nearest."""
    done = host.run(*("setpriv", "--reuid=games", "--regid=games", "--clear-groups", "torchpar", "status"), check=False)
    assert done.returncode == 3 and "members of the group torchpar only" in done.stdout and "!" not in done.stdout
    done = host.run("torchpar", "status", "train@kiled", check=False)
    assert (done.returncode, done.stderr.split("; ")[1]) == (64, "did you mean train@killed?\n")


def test_what_torchpard_says_is_found_by_its_fields(host: Machine) -> None:
    """In the journal of the service too, with what to do from the catalog."""
    unit = TRAIN.format("once")
    host.run("systemctl", "start", unit)
    host.wait_until(lambda: host.show(unit, "ActiveState") == "failed", "its end")
    look(host)
    found = ("journalctl", "--boot", "--catalog", "TORCHPAR_CHECK=failure", f"TORCHPAR_UNIT={unit}")
    host.wait_until(lambda: "has failed: exit status 1" in host.run(*found).stdout, "a line in the journal")
    assert f"Subject: A run of {unit} has failed" in host.run(*found).stdout
    assert f"{unit} has failed: exit status 1" in host.run("torchpar", "logs", "once").stdout


def test_a_conf_in_force_whose_file_becomes_a_pipe_is_broken(host: Machine) -> None:
    """For status, check and diff, as apply refuses it; a file that is mended mends it."""
    host.write("/etc/job.env", "A=1\n")
    apply(host, "[Train a]\nScript=/srv/job.py\nCPUs=0-0\nService.EnvironmentFile=/etc/job.env\n")
    host.run("systemctl", "start", TRAIN.format("a"))
    assert look(host)[0] == 0
    host.sh("rm /etc/job.env && mkfifo /etc/job.env && systemctl restart torchpard")
    status, shown, _ = look(host)
    assert status == 1 and "is a pipe (FIFO)" in shown and "as the conf says" not in shown, shown
    refused = [host.run("torchpar", verb, check=False) for verb in ("check", "diff", "apply")]
    assert [done.returncode for done in refused] == [78, 78, 78] and len({done.stderr for done in refused}) == 1
    host.sh("rm /etc/job.env && echo A=1 >/etc/job.env && systemctl restart torchpard")
    assert look(host)[0] == 0 and host.run("torchpar", "check").stdout == ""
    host.write(CONF, f"{host.read(CONF)}Threads=1\n")
    dry = host.run("torchpar", "apply", "--dry-run", check=False)
    assert dry.returncode == 2 and f"{TRAIN.format('a')} is running; it gets this when it restarts" in dry.stdout
    host.run("rm", "/etc/job.env")
