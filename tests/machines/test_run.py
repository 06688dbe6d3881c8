"""`torchpar run` on a booted Debian: as a transient unit, and directly where there can be none."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, apply

# Says what it has, waits if it is told to, and ends with the status that it is told.
SCRIPT = """\
import os, sys, time
group = open("/proc/self/cgroup").read().strip().rpartition("/")[2]
policy = open("/proc/self/numa_maps").readline().split()[1] if os.path.exists("/proc/self/numa_maps") else "none"
cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
print(cpus, os.getuid(), group, policy, os.getcwd(), os.environ.get("KEY"), os.environ["OMP_NUM_THREADS"],
      *sys.argv[1:], flush=True)
try:
    time.sleep(3600 if sys.argv[1] == "wait" else 0)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
sys.exit(int(sys.argv[2]))
"""


SAVES = """\
import time
import torchpar.runtime
asked = torchpar.runtime.stop_requested()
print("runs", open("/proc/self/cgroup").read().strip().rpartition("/")[2], flush=True)
while not torchpar.runtime.stop_requested():
    time.sleep(0.1)
print("saved", flush=True)
"""


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with a script and no enabled service; afterwards its conf is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/adhoc/job.py", SCRIPT)
    apply(machine, "[Host]\nReserveCores=0\n[Train]\nAllocator=glibc\n")
    yield machine
    machine.sh("systemctl stop 'torchpar-run-*'; rm -r /srv/adhoc")
    apply(machine, shipped)


def start(machine: Machine, *arguments: str) -> tuple[subprocess.Popen[str], str, list[str]]:
    """Start `torchpar run`; the process, its number in the machine, and the words of the job's first line."""
    process = machine.start("sh", "-c", 'cd /srv/adhoc; echo $$; exec torchpar run "$@"', "sh", *arguments)
    assert process.stdout
    pid = process.stdout.readline().strip()
    return process, pid, process.stdout.readline().split()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status and the rest of what it printed."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_a_job_of_roots_is_a_unit_beside_others(host: Machine) -> None:
    """Each gets cores of its own; arguments, environment, directory, user, signals and exit status pass through."""
    first, pid, words = start(host, "--cpus", "1", "--", "job.py", "wait", "0")
    cpu, uid, unit = words[:3]
    assert unit.startswith("torchpar-run-job-") and uid == "0"
    assert host.show(unit, "Slice") == "torchpar.slice"
    assert host.show(unit, "CPUAffinity") == host.show(unit, "AllowedCPUs") == cpu

    done = host.sh("cd /srv/adhoc; KEY='a \"$b\" c' torchpar run --user nobody -m job go 3 '$HOME %n'", check=False)
    assert done.returncode == 3, done.stderr
    other = "1" if cpu == "0" else "0"
    nobody = host.run("id", "-u", "nobody").stdout.strip()
    words = done.stdout.split(" ")
    assert words[:2] == [other, nobody] and words[4] == "/srv/adhoc"
    assert done.stdout.rstrip().endswith('a "$b" c 1 go 3 $HOME %n')
    # No secret of the caller's is left where others could read it, and no unit of a job that has ended.
    assert not host.sh("ls /run/*.env", check=False).stdout
    left = host.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "torchpar-run-*").stdout.splitlines()
    assert [line.split()[0] for line in left] == [unit]

    host.sh("kill -INT $1", pid)
    assert finish(first)[:2] == (130, "interrupted\n")
    assert host.run("systemctl", "is-active", unit, check=False).stdout == "inactive\n"


def test_a_job_ends_with_its_terminal_and_a_killed_one_says_so(host: Machine) -> None:
    """Nothing runs on unnoticed; the status of a killed job is that of a shell."""
    process, pid, words = start(host, "job.py", "wait", "0")
    host.sh("kill -HUP $1", pid)
    assert finish(process)[0] == 129
    assert host.run("systemctl", "is-active", words[2], check=False).stdout == "inactive\n"

    process, _, words = start(host, "job.py", "wait", "0")
    host.run("systemctl", "kill", "--signal=KILL", words[2])
    status, _, err = finish(process)
    assert status == 137 and "the job was killed by SIGKILL" in err


def test_a_stop_lets_the_job_save(host: Machine) -> None:
    """The same question as a declared job asks, and the same answer; nothing is left of the unit."""
    host.write("/srv/adhoc/saves.py", SAVES)
    process, _, (_, unit) = start(host, "saves.py")
    host.run("systemctl", "stop", unit)
    assert finish(process)[:2] == (0, "saved\n")
    assert host.run("systemctl", "show", "--property=LoadState", "--value", unit).stdout == "not-found\n"
    assert host.run("ls", "/run/torchpar-jobs").stdout == ""


def test_where_no_unit_can_be_had_the_command_becomes_the_job(host: Machine) -> None:
    """Without root, and without systemd: CPUs, memory policy and environment in place, what is missing said."""
    user = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--")
    absent = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run/systemd; exec "$@"', "sh")
    holder, pid, words = start(host, "--cpus", "1", "job.py", "wait", "0")
    other = "1" if words[0] == "0" else "0"
    for prefix, note in ((user, "sudo torchpar run gives the job its own unit"), (absent, "no systemd here")):
        argv = (*prefix, "torchpar", "run", "--set", "MemoryMax=1G", "--", "/srv/adhoc/job.py", "go", "4")
        done = host.run(*argv, check=False)
        words = done.stdout.split()
        assert done.returncode == 4 and words[0] == other, done.stderr
        assert words[2] == "tests.scope" and words[3] in ("bind:0", "none")
        assert note in done.stderr and "this is not set: MemoryMax=1G" in done.stderr
    denied = host.run(*user, "torchpar", "run", "--user", "root", "/srv/adhoc/job.py", check=False)
    assert denied.returncode == 77 and "sudo torchpar run --user root" in denied.stderr
    host.sh("kill -TERM $1", pid)
    finish(holder)
