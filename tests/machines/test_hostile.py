"""Jobs that do whatever they can to whoever looks at them, on a booted Debian: the view of the host stays whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, TRAIN, apply
from tests.machines.test_daemon import DAEMON

PARTS = ("good", "long", "many", "flood", "tries")

# As torchpar's own user and as another one; see torchpar-security(7), which says both.
OWN = {
    "write the conf": "Permission denied",
    "add to the conf": "Read-only file system",
    "write the store": "Permission denied",
    "write another service's state": "Read-only file system",
    "see another service's sockets": "No such file or directory",
    "tell how another service does": "No such file or directory",
    "write in /usr": "Read-only file system",
    "read another user's processes": "No such file or directory",
    "ask torchpard": "done",
    "ask torchpard as root does": "Permission denied",
    "have a file with another's rights": "Operation not permitted",
    "have rights by a setuid program": "Operation not permitted",
    "make a namespace": "Operation not permitted",
    "signal another service": "done",
    "read another service's variables": "done",
    "trace another service": "Operation not permitted",
}
OTHER = {
    **OWN,
    # As at a login: of its own user alone.
    "have a file with another's rights": "done",
    "write another service's state": "Permission denied",
    "ask torchpard": "Permission denied",
    "signal another service": "Operation not permitted",
    "read another service's variables": "No such file or directory",
}


@pytest.fixture(scope="module")
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with one service for each kind of job; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.push(Path(__file__).with_name("hostile.py"), "/srv/hostile.py")
    jobs = [f"[Train {name}]\nScript=/srv/hostile.py\nArguments={name}\nCPUs=shared\n" for name in PARTS]
    other = "[Train other]\nScript=/srv/hostile.py\nArguments=tries\nCPUs=shared\nUser=games\n"
    apply(machine, "[Host]\nReserveCores=0\n" + "".join(jobs) + other)
    yield machine
    machine.sh("systemctl kill --signal=KILL 'torchpar-train@*'; systemctl stop 'torchpar-train@*'", check=False)
    machine.sh("systemctl reset-failed; cd /var/lib/torchpar/train; rm -rf /srv/hostile.py /srv/sibling long other")
    apply(machine, shipped)


@pytest.fixture(autouse=True)
def ended(host: Machine) -> Iterator[None]:
    """Each test begins with a daemon that has not failed yet, and leaves no job but the good one."""
    host.sh("systemctl start torchpar-train@good; systemctl restart torchpard")
    yield
    units = [TRAIN.format(name) for name in (*PARTS[1:], "other")]
    host.run("systemctl", "kill", "--signal=KILL", *units, check=False)
    host.run("systemctl", "stop", *units)


def start(host: Machine, name: str) -> int:
    """Start a job, and wait until it has done what it does; its main process."""
    host.run("systemctl", "start", TRAIN.format(name))
    pid = host.show(TRAIN.format(name), "MainPID")
    job = ("journalctl", "--output=cat", f"_PID={pid}")
    host.wait_until(lambda: "ready" in host.run(*job).stdout, f"{name} is ready")
    return int(pid)


def ask(host: Machine, progress: Callable[[str], None], what: str) -> dict[str, Any]:
    """What `torchpar status` says, which is lines of text whatever it says; how long it took is printed."""
    began = time.monotonic()
    shown = host.run("torchpar", "status", check=False).stdout
    progress(f"status with {what}: {time.monotonic() - began:.2f} s")
    assert all(line.isprintable() for line in shown.split("\n")), shown
    answer: dict[str, Any] = {}

    def has_all() -> bool:
        answer.update(json.loads(host.run("torchpar", "status", "--json", check=False).stdout))
        # It says so where it is still looking, and the command where it had to look by itself.
        return not any("torchpard" in notice for notice in answer["notices"])

    host.wait_until(has_all, "torchpard has looked at all")
    assert {service["name"] for service in answer["services"]} >= {*PARTS, "other"}
    return answer


def placed(answer: dict[str, Any], name: str) -> str | None:
    """Whether a service runs as planned, by the status."""
    (found,) = (service["placed"] for service in answer["services"] if service["name"] == name)
    return None if found is None else str(found)


def state(host: Machine, name: str) -> tuple[str, str]:
    """What the status says of one service, and whether it is placed as planned."""
    (found,) = json.loads(host.run("torchpar", "status", "--json", name, check=False).stdout)["services"]
    return found["state"], found["placed"]


def assert_never_down(host: Machine) -> None:
    """The daemon has not been restarted, and has stayed small."""
    assert host.show(DAEMON, "NRestarts") == "0"
    status = host.read(f"/proc/{host.show(DAEMON, 'MainPID')}/status")
    (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    assert peak < 64 * 1024


def test_no_job_blinds_the_host_by_what_it_is(host: Machine, progress: Callable[[str], None]) -> None:
    """65,000 mappings, 2 MB of variables, thousands of processes and threads, names of any bytes, locked memory."""
    start(host, "many")
    pid = start(host, "long")
    host.run("systemctl", "restart", DAEMON)
    answer = ask(host, progress, "long and many")
    assert (placed(answer, "good"), placed(answer, "long")) == ("ok", "unknown")
    assert placed(answer, "many") in ("ok", "unknown")
    assert any(f"{TRAIN.format('long')} cannot be seen as a whole" in notice for notice in answer["notices"])
    # What the kernel does while it waits for a lock: whoever opens it waits for ever.
    host.sh('mkfifo /run/held; mount --bind /run/held "/proc/$1/numa_maps"', str(pid))
    try:
        host.run("systemctl", "restart", DAEMON)
        answer = ask(host, progress, "one that does not answer")
        assert (placed(answer, "good"), placed(answer, "long")) == ("ok", "unknown")
        shown = host.run("torchpar", "verify", check=False)
        assert shown.returncode == 3 and all(line.isprintable() for line in shown.stdout.split("\n")), shown.stdout
    finally:
        host.sh('umount "/proc/$1/numa_maps"; rm /run/held', str(pid))
    assert_never_down(host)


def test_no_flood_of_a_job_keeps_root_from_the_status(host: Machine, progress: Callable[[str], None]) -> None:
    """Connections that stay, garbage, and in the job's own folder whatever can be there: how far others are is seen.

    Each report of another job: none is lost on a way that they would share.
    """
    ask(host, progress, "an honest job")
    start(host, "flood")
    assert placed(ask(host, progress, "a flood"), "good") == "ok"

    def throughput() -> dict[str, Any]:
        answer = json.loads(host.run("torchpar", "status", "--json", check=False).stdout)
        told = {service["name"]: service["throughput"] for service in answer["services"]}
        assert told["flood"] is None
        return told["good"] or {"steps": 0}

    # One step takes a tenth of a second, and a report comes every two seconds.
    host.wait_until(lambda: throughput()["steps"] > 0, "the other job's reports")
    first, longest = throughput(), 0.0
    for _ in range(10):
        seen = throughput()
        longest = max(longest, seen["silent_seconds"])
        assert seen["ranks"] == 1 and 0 < seen["steps_per_second"] < 10.1
    host.wait_until(lambda: throughput()["steps"] > first["steps"], "its next report")
    progress(f"the other job's last report was at most {longest} s old")
    assert_never_down(host)
    # Nor does another user of the host have a say there.
    folder = "/run/torchpar-jobs/torchpar-train@good"
    for command in ("touch", "mkfifo", "mkdir"):
        games = ("setpriv", "--reuid=games", "--regid=games", "--clear-groups", command)
        assert "Permission denied" in host.run(*games, f"{folder}/progress.{command}", check=False).stderr
    assert host.run("ls", folder).stdout == "progress\n"


def test_a_killed_torchpard_is_back_however_often(host: Machine, progress: Callable[[str], None]) -> None:
    """Killed, and stopped until the watchdog sees it."""
    host.write("/run/systemd/system/torchpard.service.d/short.conf", "[Service]\nWatchdogSec=30\n")
    host.run("systemctl", "daemon-reload")
    try:
        host.run("systemctl", "restart", DAEMON)
        job = host.show(TRAIN.format("good"), "MainPID")
        for signal in ("KILL", "KILL", "STOP"):
            began, pid = time.monotonic(), host.show(DAEMON, "MainPID")
            host.sh('kill -"$1" "$2"', signal, pid)
            host.wait_until(lambda pid=pid: host.show(DAEMON, "MainPID") not in ("0", pid), "another process")
            host.wait_until(lambda: host.show(DAEMON, "ActiveState") == "active", "it is back")
            host.wait_until(lambda: state(host, "good") == ("running", "ok"), "it knows the job")
            progress(f"back, and knows the job, {time.monotonic() - began:.1f} s after SIG{signal}")
            assert host.show(TRAIN.format("good"), "MainPID") == job
        # A host that pauses for longer is one that the watchdog ends, too.
        assert int(host.show(DAEMON, "NRestarts")) >= 3 and host.show(DAEMON, "StartLimitIntervalUSec") == "0"
        assert placed(ask(host, progress, "a new torchpard"), "good") == "ok"
    finally:
        host.run("rm", "-r", "/run/systemd/system/torchpard.service.d")
        host.run("systemctl", "daemon-reload")


def test_what_a_job_can_reach_is_what_the_manual_says(host: Machine) -> None:
    """Of the host, of torchpar and of another service: as torchpar's own user, and as another one."""
    host.write("/srv/sibling", f"good {host.show(TRAIN.format('good'), 'MainPID')}")
    for name, expected in (("tries", OWN), ("other", OTHER)):
        pid = start(host, name)
        said = host.run("journalctl", "--output=cat", f"_PID={pid}").stdout
        assert json.loads(next(line for line in said.splitlines() if line.startswith("{"))) == expected, name


def test_nobody_takes_cpus_from_roots_jobs_by_a_name(host: Machine) -> None:
    """A process of another user that calls itself a job of torchpar's, with a job's variable, on all CPUs."""
    host.run("systemctl", "stop", TRAIN.format("good"))
    host.write("/srv/hostile.sh", "echo ready\nread line\n")
    job = "TORCHPAR_JOB=" + "[" * 100_000
    user = ("setpriv", "--reuid=games", "--regid=games", "--clear-groups", "--")
    fake = host.start(*user, "env", job, "sh", "/usr/lib/torchpar/../../../srv/hostile.sh", stdin=-1)
    try:
        assert fake.stdin and fake.stdout and fake.stdout.readline() == "ready\n"
        done = host.sh("cd /; exec torchpar run /srv/hostile.py", check=False)
    finally:
        fake.communicate("")
        host.run("rm", "/srv/hostile.sh")
    assert "CPUs 0" in done.stderr and "shares CPUs" not in done.stderr, done.stderr
