"""torchpard on a booted Debian: what it notices, whom it answers, and that nothing depends on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, SCRIPT, TRAIN, apply, generation

DAEMON = "torchpard.service"
SOCKET = "/run/torchpar/torchpard.sock"

# Connects as a client does and prints what it gets.
ASK = f"""
import socket
door = socket.socket(socket.AF_UNIX)
door.settimeout(200)
door.connect("{SOCKET}")
data = b""
while chunk := door.recv(65536):
    data += chunk
print(data.decode(), end="")
"""

# Says what differs between the answer for all units at once and that for each, of a service that runs and one that does
# not.
COMPARE = """
import sys
from torchpar.host import systemd
from torchpar.host.known_units import PROPERTIES, KnownUnits
known = KnownUnits(systemd.show_units(sys.argv[1:], PROPERTIES))
assert known.running_services() == systemd.running_services(), known.running_services()
for unit in sys.argv[1:]:
    quick, whole = known.unit_properties(unit), systemd.unit_properties(unit)
    assert list(quick) == list(PROPERTIES), f"{unit} was asked for by itself"
    for name, value in quick.items():
        assert value == whole[name], f"{unit} {name}: {value!r} instead of {whole[name]!r}"
"""

JOB = "[Train a]\nScript=/srv/job.py\nCPUs=1\n"


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with one service in force; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/job.py", SCRIPT)
    apply(machine, JOB)
    machine.run("systemctl", "restart", DAEMON)
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*'; systemctl reset-failed")
    apply(machine, shipped)
    machine.run("systemctl", "start", DAEMON)


def status(machine: Machine) -> dict[str, Any]:
    """What `torchpar status` knows."""
    answer: dict[str, Any] = json.loads(machine.run("torchpar", "status", "--json", check=False).stdout)
    return answer


def test_it_notices_a_newer_and_a_broken_conf(host: Machine) -> None:
    """In `torchpar status`, in `systemctl status`, and once in the journal."""
    assert status(host)["conf"] == "in sync"
    host.write(CONF, JOB + "Threads=1\n")
    assert status(host)["conf"] == "newer"
    host.wait_until(lambda: "the conf is newer than generation" in host.journal(DAEMON), "a line in the journal")
    host.write(CONF, JOB + "Threads=some\n")
    answer = status(host)
    assert answer["conf"] == "broken"
    assert any("/etc/torchpar.conf:4: [Train a] Threads=some" in notice for notice in answer["notices"])
    assert "conf is broken at /etc/torchpar.conf:4: [Train a] Threads=some" in host.show(DAEMON, "StatusText")
    assert host.journal(DAEMON).count("Threads=some") == 1
    # It can be read, and asks for more than there is.
    before = generation(host)
    host.write(CONF, "[Host]\nAutoApply=yes\n" + JOB.replace("CPUs=1", "CPUs=4000"))
    answer = status(host)
    assert answer["conf"] == "broken"
    assert any("the conf is broken at /etc/torchpar.conf:5: " in notice for notice in answer["notices"])
    assert "conf is broken at /etc/torchpar.conf:5: " in host.show(DAEMON, "StatusText")
    assert host.run("torchpar", "check", check=False).returncode == 78
    assert host.run("systemctl", "reload", DAEMON, check=False).returncode == 1
    assert generation(host) == before
    host.write(CONF, JOB)
    assert status(host)["conf"] == "in sync"


def test_it_notices_a_job_that_is_not_where_it_should_be(host: Machine) -> None:
    """Drift is in the status, with what to do."""
    host.run("systemctl", "start", TRAIN.format("a"))
    service = next(s for s in status(host)["services"] if s["unit"] == TRAIN.format("a"))
    assert (service["state"], service["placed"]) == ("running", "ok")
    cpus = "1" if service["cpus"] == "0" else "0"
    host.run("taskset", "-apc", cpus, str(service["main_pid"]))
    host.run("systemctl", "restart", DAEMON)
    answer = status(host)
    assert next(s for s in answer["services"] if s["unit"] == TRAIN.format("a"))["placed"] == "drift"
    assert f"{TRAIN.format('a')} does not run as planned (CPUs)" in " ".join(answer["notices"])
    said = host.run("torchpar", "verify", "a", check=False)
    assert said.returncode == 1 and said.stdout.endswith("to place it as planned: torchpar verify --repair train@a\n")
    said = host.run("torchpar", "verify", "--repair", "train@a")
    assert "thread moved to CPUs" in said.stderr or "threads moved to CPUs" in said.stderr


def test_all_units_are_asked_for_at_once(host: Machine) -> None:
    """And have the values that each has by itself, also with a limit and another drop-in."""
    host.run("systemctl", "start", TRAIN.format("a"))
    host.run("systemctl", "set-property", "--runtime", TRAIN.format("a"), "MemoryMax=1G")
    units = TRAIN.format("a"), "torchpar-train@demo.service"
    host.run("python3", "-B", "-c", COMPARE, *units)
    host.run("systemctl", "revert", TRAIN.format("a"))


def test_it_applies_an_edit_by_itself_only_where_the_conf_says_so(host: Machine) -> None:
    """AutoApply=yes, once for each edit, and never one with a mistake."""
    before = generation(host)
    host.write(CONF, "[Host]\nAutoApply=yes\n" + JOB + "Threads=x\n")
    assert status(host)["conf"] == "broken" and generation(host) == before
    host.write(CONF, "[Host]\nAutoApply=yes\n" + JOB + "WaitPolicy=passive\n")
    host.wait_until(lambda: generation(host) != before, "the edit is in force")
    host.wait_until(lambda: status(host)["conf"] == "in sync", "the conf is in sync")


def test_a_service_that_leaves_the_conf_while_it_runs_is_seen_until_it_ends(host: Machine) -> None:
    """With what to do, in the status and its exit status; what the reload warned of is a warning in the journal."""
    left = TRAIN.format("a")
    host.run("systemctl", "start", left)
    host.write(CONF, "[Train other]\nScript=/srv/job.py\nCPUs=1\nTune=online\n")
    host.run("systemctl", "reload", DAEMON)
    seen = host.run("torchpar", "status", "--json", check=False)
    answer = json.loads(seen.stdout)
    row = next(service for service in answer["services"] if service["unit"] == left)
    assert (seen.returncode, row["state"], row["in_force"]) == (1, "out of force, still running", False)
    assert any(f"{left} is out of force and still runs" in notice for notice in answer["notices"])
    assert "1 out of force and still running" in host.show(DAEMON, "StatusText")
    assert "out of force, still running" in host.run("torchpar", "status", "a", check=False).stdout
    verified = host.run("torchpar", "verify", check=False)
    assert verified.returncode == 1 and f"{left} is out of force" in verified.stdout
    warnings = host.run(
        "journalctl", "--boot", "--unit", DAEMON, "--priority", "warning", "--identifier", "torchpar"
    ).stdout
    assert f"{left} is out of force" in warnings and "Tune=online: has no effect" in warnings
    host.write(CONF, "[Train other]\nThreads=x\n")
    host.run("systemctl", "reload", DAEMON, check=False)
    assert "[Train other] Threads=x" in host.run("journalctl", "--unit", DAEMON, "--priority", "err").stdout
    host.run("systemctl", "stop", left)
    seen = host.run("torchpar", "status", "--json", check=False)
    assert seen.returncode == 1 and left not in seen.stdout, "the conf is broken"
    host.write(CONF, "[Train other]\nScript=/srv/job.py\nCPUs=1\nTune=online\n")
    assert "\n  train@other  stopped\n" in host.run("torchpar", "status").stdout


def test_a_socket_that_leaves_the_conf_is_seen_until_it_is_closed(host: Machine, ports: None) -> None:
    """At once: nobody closes it twice, or looks for what is not there."""
    left = "torchpar-infer@left.socket"
    host.write(CONF, "[Infer left]\nModel=/srv/job.py\nListen=127.0.0.1:18013\n")
    host.run("systemctl", "reload", DAEMON)
    host.run("systemctl", "start", left)
    host.write(CONF, "")
    host.run("systemctl", "reload", DAEMON)
    seen = host.run("torchpar", "status", check=False)
    assert seen.returncode == 1 and f"! {left} is out of force and still listens" in seen.stdout
    host.run("systemctl", "stop", left)
    assert left not in host.run("torchpar", "status").stdout


def test_nothing_waits_for_what_is_no_file(host: Machine) -> None:
    """Pipes, devices, folders and links among the files of the conf, also while the machine boots."""
    host.sh(
        "mkdir -p /usr/lib/torchpar.conf.d /etc/torchpar.conf.d/30-old.conf; cd /etc/torchpar.conf.d;"
        "job() { printf '[Train %s]\\nScript=/srv/job.py\\n' \"$1\"; };"
        "job old >/usr/lib/torchpar.conf.d/10-vendor.conf; job old >30-old.conf/a.conf; ln -s /dev/null 10-vendor.conf;"
        "mkfifo 40-pipe.conf; ln -s /dev/zero 50-zero.conf; ln -s /nowhere 60-none.conf;"
        "job linked >../linked; ln -s ../linked 70-link.conf; ln -s 70-link.conf 71-link.conf;"
        ": >90-empty.conf; job last >95-last.conf; chmod 600 95-last.conf"
    )
    try:
        said = host.run("torchpar", "validate", check=False)
        named = [line.split(":")[1].rpartition("/")[2] for line in said.stderr.splitlines()]
        assert (said.returncode, named) == (78, ["40-pipe.conf", "50-zero.conf", "60-none.conf"])
        assert host.run("systemctl", "reload", DAEMON, check=False).returncode == 1
        assert status(host)["conf"] == "broken" and host.show(DAEMON, "NRestarts") == "0"
        host.reboot()
        assert status(host)["conf"] == "broken"
        assert host.run("systemctl", "is-failed", DAEMON, check=False).stdout == "active\n"
        host.sh("cd /etc/torchpar.conf.d; rm 40-pipe.conf 50-zero.conf 60-none.conf")
        assert status(host)["conf"] == "newer"
        host.run("systemctl", "reload", DAEMON)
        assert {service["name"] for service in status(host)["services"]} >= {"a", "linked", "last"}
        assert not {service["name"] for service in status(host)["services"]} & {"old"}
        host.write("/etc/linked", "[Train linked]\nScript=/srv/job.py\nThreads=1\n")
        assert status(host)["conf"] == "newer"
    finally:
        host.sh("cd /etc/torchpar.conf.d; rm -rf ./*.conf ../linked /usr/lib/torchpar.conf.d/10-vendor.conf")


def test_only_root_and_the_group_are_answered(host: Machine) -> None:
    """The socket is 0660 root:torchpar, and the peer is looked at."""
    assert host.run("stat", "-c", "%a %U:%G", SOCKET).stdout == "660 root:torchpar\n"
    assert json.loads(host.run("python3", "-c", ASK).stdout)["version"] == 1
    host.run("usermod", "-a", "-G", "torchpar", "games")
    try:
        as_member = ("setpriv", "--reuid=games", "--regid=games", "--init-groups", "python3", "-c", ASK)
        assert json.loads(host.run(*as_member).stdout)["version"] == 1
        # Who is let in by the file's mode alone is not a member.
        pretender = ("setpriv", "--reuid=daemon", "--regid=torchpar", "--clear-groups", "python3", "-c", ASK)
        assert host.run(*pretender).stdout == ""
    finally:
        host.run("gpasswd", "-d", "games", "torchpar")
    stranger = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", "python3", "-c", ASK)
    assert "PermissionError" in host.run(*stranger, check=False).stderr


def test_two_hundred_services_are_no_burden(host: Machine, progress: Callable[[str], None]) -> None:
    """It stays small and answers with all of them, of which some run and one fails."""
    names = [f"s{number}" for number in range(200)]
    host.write("/srv/fails.py", "raise ValueError\n")
    job = "[Train {}]\nScript=/srv/{}.py\nCPUs=shared\nRestart=no\n"
    apply(host, "".join(job.format(name, "fails" if name == "s199" else "job") for name in names))
    host.run("systemctl", "start", *(TRAIN.format(name) for name in (*names[:10], "s199")))
    host.wait_until(lambda: host.show(TRAIN.format("s199"), "ActiveState") == "failed", "its end")
    began = time.monotonic()

    def look() -> dict[str, dict[str, Any]]:
        """While torchpard is still looking it answers with what it saw before."""
        rows = {row["name"]: row for row in status(host)["services"]}
        return rows if {*names} <= {*rows} and rows["s199"]["state"] == "failed" else {}

    rows = host.wait_until(look, "all are seen")
    progress(f"status with 200 services: {time.monotonic() - began:.1f} s")
    assert [rows[name]["state"] for name in names[8:12]] == ["running", "running", "stopped", "stopped"]
    assert host.show(DAEMON, "NRestarts") == "0"
    kernel = host.read(f"/proc/{host.show(DAEMON, 'MainPID')}/status")
    (peak,) = (int(line.split()[1]) for line in kernel.splitlines() if line.startswith("VmHWM:"))
    assert peak < 40 * 1024


def test_no_job_needs_it(host: Machine) -> None:
    """A hangup does not end it; it is killed and comes back; it is stopped and jobs start, apply works, status looks
    by itself."""
    pid = host.show(DAEMON, "MainPID")
    host.run("systemctl", "kill", "--signal=HUP", DAEMON)
    assert status(host)["version"] == 1 and host.show(DAEMON, "MainPID") == pid
    host.sh("kill -KILL $1", pid)
    host.wait_until(lambda: host.show(DAEMON, "MainPID") not in ("0", pid), "it comes back")
    host.run("systemctl", "stop", DAEMON)
    host.run("systemctl", "start", TRAIN.format("a"))
    host.run("torchpar", "apply")
    answer = status(host)
    assert next(s for s in answer["services"] if s["unit"] == TRAIN.format("a"))["placed"] == "ok"
    assert any("torchpard does not answer" in notice for notice in answer["notices"])


def test_it_lives_with_a_damaged_store_and_a_missing_conf(host: Machine) -> None:
    """It says so, and goes on."""
    host.sh("rm /var/lib/torchpar/active; rm /etc/torchpar.conf")
    assert any("nothing has been applied" in notice for notice in status(host)["notices"])
    host.write(CONF, JOB)
    host.run("torchpar", "apply")
    host.sh("rm /var/lib/torchpar/active/plan.json")
    host.run("systemctl", "restart", DAEMON)
    assert any("is damaged" in notice for notice in status(host)["notices"])
    assert host.show(DAEMON, "NRestarts") == "0"
    host.run("torchpar", "apply")


def test_it_is_small_and_well_shut_in(host: Machine) -> None:
    """No torch in it; exposure at most 1.5."""
    pid = host.show(DAEMON, "MainPID")
    assert "torch/" not in host.read(f"/proc/{pid}/maps")
    done = host.run("systemd-analyze", "security", "--threshold=15", DAEMON, check=False)
    assert done.returncode == 0, done.stdout[-300:]
