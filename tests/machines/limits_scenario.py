"""Runs in the emulated machine of test_numa.py: what a job sees in containers of podman, and in jobs of Slurm.

The containers have the machine's own files, so torchpar and a conf, whose services cannot run there without systemd.
"""

import json
import pathlib
import socket
import subprocess
import time

# What the kernel has of a job, after it has touched 20 MiB.
SHOW = """
import json, os, re
memory = bytearray(20 * 2**20)
for place in range(0, len(memory), 4096):
    memory[place] = 1
pages = {}
for line in open("/proc/self/numa_maps"):
    if "anon=" in line:
        for node, count in re.findall(r"\\bN(\\d+)=(\\d+)", line):
            pages[node] = pages.get(node, 0) + int(count)
print(json.dumps({
    "cpus": sorted(os.sched_getaffinity(0)),
    "threads": os.environ["OMP_NUM_THREADS"],
    "rank": os.environ.get("RANK"),
    "pages": pages,
}), flush=True)
"""

# In a container: the facts, then what a job becomes.
IN_CONTAINER = "torchpar facts && torchpar run -- /srv/show.py"
# The whole root is bound without its mounts, so the container's /run is empty.
ROOT = ("mount", "--bind", "/", "/srv/root")
PODMAN = ("podman", "run", "--rm", "--network=none")
CONTAINERS = {
    "cpuset": ("--cpuset-cpus=2-5", "--cpuset-mems=1-2", "--memory=300m"),
    "quota in a cpuset": ("--cpuset-cpus=4-7", "--cpuset-mems=2-3", "--cpus=2.5", "--user=65534"),
    "quota": ("--cpus=2", "--cgroupns=host"),
}

ADDRESS = "192.0.2.1"
SLURM = f"""\
ClusterName=test
SlurmctldHost={socket.gethostname()}({ADDRESS})
SlurmUser=slurm
AuthType=auth/munge
MpiDefault=none
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup,task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
NodeName={socket.gethostname()} NodeAddr={ADDRESS} CPUs=8 RealMemory=2000
PartitionName=all Nodes=ALL Default=YES DefMemPerCPU=100
"""
CGROUP = "CgroupPlugin=cgroup/v2\nConstrainCores=yes\nConstrainRAMSpace=yes\n"
STEPS = {
    "one task": ("--cpus-per-task=2",),
    "two tasks": ("--ntasks=2", "--cpus-per-task=2"),
    "two tasks of one cpuset": ("--ntasks=2", "--cpus-per-task=2", "--cpu-bind=none"),
}


def run(*argv):
    """Exit status, and what a command printed and said."""
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return {"status": done.returncode, "printed": done.stdout, "said": done.stderr}


def look():
    """What torchpar makes of the limits of each container and step."""
    pathlib.Path("/srv/show.py").write_text(SHOW)
    pathlib.Path("/srv/root").mkdir()
    seen = {"root": run(*ROOT)}
    for name, limits in CONTAINERS.items():
        seen[name] = run(*PODMAN, *limits, "--rootfs", "/srv/root", "sh", "-c", IN_CONTAINER)
    pathlib.Path("/etc/slurm/slurm.conf").write_text(SLURM)
    pathlib.Path("/etc/slurm/cgroup.conf").write_text(CGROUP)
    # Slurm wants another address than the loopback's own.
    seen["address"] = run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    seen["slurm"] = run("systemctl", "start", "munge", "slurmctld", "slurmd")
    for _ in range(300):
        if "idle" in run("sinfo", "--noheader", "--format=%t")["printed"]:
            break
        time.sleep(1)
    # The first CPUs are another job's.
    other = subprocess.Popen(["srun", "--cpus-per-task=2", "sleep", "3600"])
    for _ in range(300):
        if run("squeue", "--noheader", "--states=RUNNING")["printed"]:
            break
        time.sleep(1)
    for name, options in STEPS.items():
        seen[name] = run("srun", "--immediate=300", *options, "torchpar", "run", "--", "/srv/show.py")
    other.terminate()
    other.wait()
    seen["journal"] = run("journalctl", "--boot", "--output=cat", "--lines=20", "--unit=slurm*")["printed"]
    return seen


if __name__ == "__main__":
    print(json.dumps(look()), flush=True)
