"""Runs in the emulated machine of test_numa.py, with Debian's Python alone: prints one JSON object of what it saw."""

import json
import pathlib
import re
import subprocess
import time

CONF = """
[Train a]
Script=/srv/job.py
CPUs=node:0
Enabled=yes
MemoryMax=400M
[Train b]
Script=/srv/job.py
CPUs=node:1
"""

JOB = """
import time
memory = bytearray(100 * 2**20)
for place in range(0, len(memory), 4096):
    memory[place] = 1
print("touched", flush=True)
time.sleep(3600)
"""


def run(*argv):
    """Exit status and all that a command printed."""
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def unit(name):
    """What the kernel and systemd have of a training service."""
    name = f"torchpar-train@{name}.service"
    pid = run("systemctl", "show", "--property=MainPID", "--value", name)[1].strip()
    if pid == "0":
        return {"pid": 0, "journal": run("journalctl", "--no-pager", "--output=cat", "--boot", "--unit", name)[1]}
    while "touched" not in run("journalctl", "--no-pager", "--output=cat", "--boot", "--unit", name)[1]:
        time.sleep(1)
    proc = pathlib.Path("/proc", pid)
    allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", (proc / "status").read_text())[1]
    pages = {}
    for line in (proc / "numa_maps").read_text().splitlines():
        if "anon=" in line:
            for node, count in re.findall(r"\bN(\d+)=(\d+)", line):
                pages[node] = pages.get(node, 0) + int(count)
    group = pathlib.Path("/sys/fs/cgroup/torchpar.slice", name)
    return {
        "pid": int(pid),
        "allowed": allowed,
        "cpuset": (group / "cpuset.cpus.effective").read_text().strip(),
        "mems": (group / "cpuset.mems.effective").read_text().strip(),
        "anonymous_pages": pages,
    }


def main():
    seen = {"kernel": run("uname", "-r")[1].strip()}
    if not pathlib.Path("/srv/second-boot").exists():
        pathlib.Path("/srv/job.py").write_text(JOB)
        pathlib.Path("/etc/torchpar.conf").write_text(CONF)
        seen["apply"] = run("torchpar", "apply")
        seen["start a"] = run("systemctl", "start", "torchpar-train@a")
        seen["a alone"] = unit("a")
        seen["start b"] = run("systemctl", "start", "torchpar-train@b")
        seen["a"], seen["b"] = unit("a"), unit("b")
        status, printed = run("torchpar", "verify", "--json")
        seen["verify"] = {"status": status, "services": json.loads(printed)}
        pathlib.Path("/srv/second-boot").touch()
    else:
        seen["a"] = unit("a")
        seen["start b"] = run("systemctl", "start", "torchpar-train@b")
        seen["b"] = unit("b")
    print(json.dumps(seen), flush=True)


main()
