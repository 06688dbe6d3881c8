"""What torchpard costs a host, at rest and in a flood, and how soon it is back after a kill. On a booted Debian.

    make bench-daemon    or    python3 -m tests.benchmarks.bench_daemon [--services 50 200] [--minutes 3] ...

With its defaults it takes some 25 minutes, ten of which are the flood. Only the kill and the flood, in twelve:

    make bench-daemon ARGUMENTS='--services 50 --minutes 0'

The services run and tell how far they are every two seconds, as training jobs do. The CPU time is that of torchpard's
control group, with all the processes that it starts; that of systemd, which answers it, is printed beside it. The
memory is that of its processes (PSS), and the peak of the first one.

A kill: torchpard gets SIGKILL as often as `--kills` says. Printed is how long it is until a new process answers, and
until its answer has every job with its speed; the jobs run on as the processes that they were.

A flood: a member of the group torchpar asks as often as it can, over more connections than it may have, and a service
writes into its own folder without a pause. All of them would take the CPUs from whoever asks.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time

from tests.machines.machine import Machine
from tests.machines.package import build_package
from tests.machines.roots import Suite

DAEMON = "torchpard.service"
GROUP = "/sys/fs/cgroup/system.slice/torchpard.service"
ANSWERS_IN = 15.0
BACK_IN = 5.0

# Writes its progress as the runtime does; the first service floods where there is a file that says so.
JOB = """
import itertools, os, time
from torchpar.contract.reports import Progress, make_slot
path = os.environ["RUNTIME_DIRECTORY"] + "/progress"
floods = "@s0/" in path
file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
for number in itertools.count():
    told = Progress(os.getpid(), 0, time.monotonic(), number, 32 * number, number, 0.1, 0.1, number, 1, 0, False)
    place, slot = make_slot(told, number)
    os.pwrite(file, slot, place)
    time.sleep(0.001 if floods and os.path.exists("/run/flood") else 2)
"""

# Two hundred connections at a time, each of which asks again when it is answered or refused, until the time is over.
FLOOD = """
import selectors, socket, sys, time
until, selector, answered = time.monotonic() + float(sys.argv[1]), selectors.DefaultSelector(), 0
def ask():
    door = socket.socket(socket.AF_UNIX)
    door.setblocking(False)
    try:
        door.connect("/run/torchpar/torchpard.sock")
    except BlockingIOError:
        return door.close()
    selector.register(door, selectors.EVENT_READ)
while time.monotonic() < until:
    while len(selector.get_map()) < 200 and time.monotonic() < until:
        before = len(selector.get_map())
        ask()
        if len(selector.get_map()) == before:
            break
    for key, _ in selector.select(0.1):
        data = b""
        try:
            data = key.fileobj.recv(65536)
        except OSError:
            pass
        if not data:
            selector.unregister(key.fileobj)
            key.fileobj.close()
        answered += bool(data)
print(answered)
"""


# Kills the process that is named; prints the seconds until another one answers, and until it knows so many jobs.
KILL = """
import json, os, signal, socket, sys, time
def ask():
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(10)
        door.connect("/run/torchpar/torchpard.sock")
        data = b"".join(iter(lambda: door.recv(65536), b""))
    return json.loads(data)
pid, count, back = int(sys.argv[1]), int(sys.argv[2]), None
began = time.monotonic()
os.kill(pid, signal.SIGKILL)
while time.monotonic() < began + 120:
    try:
        answer = ask()
    except (OSError, ValueError):
        time.sleep(0.02)
        continue
    back = back or time.monotonic() - began
    if sum(bool(row["throughput"]) for row in answer["services"]) == count:
        print(json.dumps([back, time.monotonic() - began]))
        break
    time.sleep(0.02)
"""


def cpu_seconds(machine: Machine, group: str) -> float:
    """The CPU time of a control group since it began."""
    found = re.search(r"usage_usec (\d+)", machine.read(f"{group}/cpu.stat"))
    assert found
    return int(found[1]) / 1e6


def memory_mib(machine: Machine) -> tuple[float, float]:
    """The memory of all of torchpard's processes (PSS), and the peak of the first one (VmHWM), in MiB."""
    pids = machine.read(f"{GROUP}/cgroup.procs").split()
    rollups = machine.sh('for pid; do cat "/proc/$pid/smaps_rollup" || true; done', *pids).stdout
    peak = re.search(r"VmHWM:\s+(\d+)", machine.read(f"/proc/{machine.show(DAEMON, 'MainPID')}/status"))
    assert peak
    return sum(map(int, re.findall(r"(?m)^Pss:\s+(\d+)", rollups))) / 1024, int(peak[1]) / 1024


def measure(machine: Machine, seconds: float) -> str:
    """What it costs for so long."""
    began, used, init = time.monotonic(), cpu_seconds(machine, GROUP), cpu_seconds(machine, "/sys/fs/cgroup/init.scope")
    time.sleep(seconds)
    span = time.monotonic() - began
    share = 100 * (cpu_seconds(machine, GROUP) - used) / span
    others = 100 * (cpu_seconds(machine, "/sys/fs/cgroup/init.scope") - init) / span
    now, peak = memory_mib(machine)
    return f"{share:6.3f} % of a CPU (systemd {others:.3f} %), {now:.1f} MiB, peak {peak:.1f} MiB"


def start_services(machine: Machine, count: int) -> None:
    """Has so many services run, and torchpard begin anew with them."""
    machine.write("/srv/tells.py", JOB)
    conf = "".join(f"[Train s{i}]\nScript=/srv/tells.py\nCPUs=shared\nAllocator=glibc\n" for i in range(count))
    machine.write("/etc/torchpar.conf", f"[Host]\nReserveCores=0\n{conf}")
    machine.run("torchpar", "apply", timeout=600)
    machine.run("systemctl", "start", *(f"torchpar-train@s{i}" for i in range(count)), timeout=600)
    machine.run("systemctl", "restart", DAEMON)
    # Each has told twice by then.
    time.sleep(5)
    asked = time.monotonic()
    answer = json.loads(machine.run("torchpar", "status", "--json", check=False).stdout)
    running = [row["unit"] for row in answer["services"] if row["throughput"]]
    assert len(running) == count, f"only {len(running)} of {count} services run"
    print(f"  the first status took {time.monotonic() - asked:.1f} s")


def bench_rest(machine: Machine, count: int, minutes: float) -> None:
    """At rest, after it has looked at everything once."""
    time.sleep(30)
    print(f"  {count:4} services at rest   {measure(machine, 60 * minutes)}", flush=True)
    print("       (target with 50 services: 0.2 % of a CPU, 40 MiB)", flush=True)


def main_pids(machine: Machine, count: int) -> str:
    """The processes of the jobs, as systemd has them."""
    units = (f"torchpar-train@s{i}.service" for i in range(count))
    return machine.run("systemctl", "show", "--property=MainPID,NRestarts", *units).stdout


def bench_kill(machine: Machine, count: int, kills: int) -> None:
    """Killed at any time: how soon it is back, and how soon it knows the jobs again, which do not notice."""
    machine.write("/srv/kill.py", KILL)
    before, back, known = main_pids(machine, count), [], []
    for number in range(kills):
        # At another moment of its minute each time.
        time.sleep(2 + 7 * number % 20)
        pid = machine.show(DAEMON, "MainPID")
        said = machine.run("python3", "/srv/kill.py", pid, str(count), timeout=150).stdout
        assert said, "it has not known the jobs for two minutes"
        for times, seconds in zip((back, known), json.loads(said), strict=True):
            times.append(seconds)
    same = "the same" if main_pids(machine, count) == before else "NOT THE SAME"
    print(f"  {count:4} services, killed {kills} times   ", end="")
    print(f"answers after {statistics.median(back):.1f} s, at most {max(back):.1f}")
    print(f"       knows all jobs after {statistics.median(known):.1f} s, at most {max(known):.1f}", end="")
    print(f"  (target: at most {BACK_IN:g} s); the jobs' processes are {same}", flush=True)


def bench_flood(machine: Machine, seconds: float) -> None:
    """In a flood at both places; root's questions are answered meanwhile, and systemd never restarts it."""
    restarts, pid, waits = machine.show(DAEMON, "NRestarts"), machine.show(DAEMON, "MainPID"), []
    machine.write("/srv/flood.py", FLOOD)
    machine.write("/run/flood", "")
    machine.run("usermod", "-a", "-G", "torchpar", "games")
    member = ("setpriv", "--reuid=games", "--regid=games", "--init-groups")
    flood = machine.start(*member, "python3", "/srv/flood.py", str(seconds))
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            asked = time.monotonic()
            said = machine.run("torchpar", "status", "--json", check=False).stdout
            waits.append(time.monotonic() - asked)
            assert "torchpard does not answer" not in said
            time.sleep(min(5.0, max(0.0, until - time.monotonic())))
        now, peak = memory_mib(machine)
        answers = flood.communicate(timeout=60)[0].strip()
        print(f"  a flood for {seconds:g} s: {answers} answers; {now:.1f} MiB, peak {peak:.1f} MiB;")
    finally:
        machine.run("rm", "-f", "/run/flood")
    print(f"    torchpar status by root took {statistics.median(waits):.1f} s, at most {max(waits):.1f}", end="")
    print(f"  (target: at most {ANSWERS_IN:g});")
    kept = machine.show(DAEMON, "MainPID") == pid and "Watchdog timeout" not in machine.journal(DAEMON)
    print(f"    restarts {int(machine.show(DAEMON, 'NRestarts')) - int(restarts)}  (target: none);", end="")
    print(f" the watchdog was {'kept' if kept else 'NOT KEPT'}", flush=True)


def main() -> None:
    """Measure on one release, trixie if none is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Suite, default=Suite.TRIXIE, help="the Debian release (default: trixie)")
    parser.add_argument("--services", type=int, nargs="+", default=[50, 200], help="how many run (default: 50 200)")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each measurement at rest; 0: none (default: 3)")
    parser.add_argument("--kills", type=int, default=5, help="how often it is killed; 0: never (default: 5)")
    parser.add_argument("--flood", type=float, default=600.0, metavar="SECONDS", help="0: none (default: 600)")
    arguments = parser.parse_args()
    with Machine(arguments.suite, "bench") as machine:
        machine.install_deb(build_package(arguments.suite), recommends=False)
        print(f"\n{arguments.suite.release}")
        for count in arguments.services:
            start_services(machine, count)
            if arguments.minutes:
                bench_rest(machine, count, arguments.minutes)
            if arguments.kills:
                bench_kill(machine, count, arguments.kills)
        if arguments.flood:
            bench_flood(machine, arguments.flood)


if __name__ == "__main__":
    main()
