"""Runs in the emulated machine of test_numa.py, with Debian's Python alone: prints one JSON object of what it saw."""

import json
import pathlib
import re
import subprocess
import time

import limits_scenario

CONF = """
[Train a]
Script=/srv/job.py
CPUs=node:0
Enabled=yes
MemoryMax=400M
Borrow=yes
[Train b]
Script=/srv/job.py
Ranks=numa
[Train c]
Script=/srv/job.py
CPUs=node:1
[Train d]
Script=/srv/job.py
CPUs=node:3
Lend=yes
"""

JOB = """
import time
memory = bytearray(100 * 2**20)
for place in range(0, len(memory), 4096):
    memory[place] = 1
print("touched", flush=True)
time.sleep(3600)
"""


# Starts the ranks as torchrun does: this machine has no torch. All else is torchpar's.
LAUNCHER = """
import os, subprocess, sys
sys.path.append("/usr/lib/torchpar/python")
from torchpar.contract.job import parse_job_environment
ranks = [str(rank) for rank in range(len(parse_job_environment(os.environ).ranks))]
argv = [sys.executable, "/usr/lib/torchpar/run.py", "--", "/srv/job.py"]
for rank in [subprocess.Popen(argv, env={**os.environ, "LOCAL_RANK": rank}) for rank in ranks]:
    rank.wait()
"""
DROP_IN = """
[Service]
ExecStart=
ExecStart=/usr/bin/python3 /srv/launcher.py
"""


def run(*argv):
    """Exit status and all that a command printed."""
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def unit(name, processes=1):
    """What the kernel and systemd have of a training service."""
    name = f"torchpar-train@{name}.service"
    pid = run("systemctl", "show", "--property=MainPID", "--value", name)[1].strip()
    if pid == "0":
        return {"pid": 0, "journal": run("journalctl", "--no-pager", "--output=cat", "--boot", "--unit", name)[1]}
    journal = ("journalctl", "--no-pager", "--output=cat", "--boot", "--unit", name)
    while run(*journal)[1].count("touched") < processes:
        time.sleep(1)
    group = pathlib.Path("/sys/fs/cgroup/torchpar.slice", name)
    pids = (group / "cgroup.procs").read_text().split()
    jobs = [pid for pid in pids if b"/srv/job.py" in pathlib.Path("/proc", pid, "cmdline").read_bytes()]
    return {
        "processes": [process(pathlib.Path("/proc", pid)) for pid in sorted(jobs, key=int)],
        "cpuset": (group / "cpuset.cpus.effective").read_text().strip(),
        "mems": (group / "cpuset.mems.effective").read_text().strip(),
    }


def settled(name, cpus):
    """The same of a service with one process, once it may compute on these CPUs; torchpard takes its time here."""
    for _ in range(300):
        seen = unit(name)
        if not seen.get("processes") or seen["processes"][0]["allowed"] == cpus:
            break
        time.sleep(1)
    return seen


def process(proc):
    """Where one process may compute, and where its memory is."""
    pages = {}
    for line in (proc / "numa_maps").read_text().splitlines():
        if "anon=" in line:
            for node, count in re.findall(r"\bN(\d+)=(\d+)", line):
                pages[node] = pages.get(node, 0) + int(count)
    allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", (proc / "status").read_text())[1]
    return {"allowed": allowed, "anonymous_pages": pages}


def main():
    seen = {"kernel": run("uname", "-r")[1].strip()}
    if not pathlib.Path("/srv/second-boot").exists():
        pathlib.Path("/srv/job.py").write_text(JOB)
        pathlib.Path("/srv/launcher.py").write_text(LAUNCHER)
        drop_in = pathlib.Path("/etc/systemd/system/torchpar-train@b.service.d/launcher.conf")
        drop_in.parent.mkdir()
        drop_in.write_text(DROP_IN)
        pathlib.Path("/etc/torchpar.conf").write_text(CONF)
        seen["apply"] = run("torchpar", "apply")
        seen["start a"] = run("systemctl", "start", "torchpar-train@a")
        seen["a alone"] = settled("a", "0-1,6-7")
        seen["start b"] = run("systemctl", "start", "torchpar-train@b")
        seen["b"] = unit("b", processes=3)
        seen["a"] = settled("a", "0-1")
        # What cannot be read in time on a CPU that is this slow is read again.
        for _ in range(30):
            status, printed = run("torchpar", "verify", "--json")
            if '"unknown"' not in printed:
                break
        seen["verify"] = {"status": status, "services": json.loads(printed)}
        # Two processors of the host emulate all CPUs; and what follows turns controllers on.
        run("systemctl", "stop", "torchpar-train@a", "torchpar-train@b")
        seen["limits"] = limits_scenario.look()
        pathlib.Path("/srv/second-boot").touch()
    else:
        seen["a"] = unit("a")
        seen["start c"] = run("systemctl", "start", "torchpar-train@c")
        seen["c"] = unit("c")
    print(json.dumps(seen), flush=True)


main()
