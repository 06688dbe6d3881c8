"""`srun torchpar run` with Debian's own Slurm: one controller, and a node on each of two hosts.

Both hosts are networks of one booted Debian, each with its name and Debian's /etc/hosts, which calls it 127.0.1.1. A
container has neither the cpuset controller nor a cgroup hierarchy that Slurm takes, so it is task/affinity that keeps
tasks to their CPUs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.roots import Suite
from tests.machines.test_apply import CONF, apply
from tests.machines.test_multinode import NETWORK

DEADLINE = 300.0

SLURM = """\
ClusterName=test
SlurmctldHost=one(192.0.2.1)
SlurmUser=slurm
AuthType=auth/munge
MpiDefault=none
StateSaveLocation=/srv/slurm/state
SlurmdSpoolDir=/srv/slurm/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=600
NodeName=one NodeAddr=192.0.2.1 CPUs=2
NodeName=two NodeAddr=192.0.2.2 CPUs=2
PartitionName=all Nodes=ALL Default=YES
"""

# Slurm 22.05 has no "disabled", and asks for no hierarchy where it is to use that of version 1.
CGROUP = {Suite.BOOKWORM: "CgroupPlugin=cgroup/v1\n", Suite.TRIXIE: "CgroupPlugin=disabled\n"}

# $1 the host; then the command.
ENTER = """\
#!/bin/sh -eu
host=$1; shift
exec nsenter --net=/run/netns/$host unshare --uts --mount sh -euc '
    hostname $0
    mount --bind /srv/slurm/hosts-$0 /etc/hosts
    exec "$@"' $host "$@"
"""

START = """
mkdir -p /srv/slurm/state /srv/slurm/spool-one /srv/slurm/spool-two
chown slurm: /srv/slurm/state
systemctl start munge
systemd-run --quiet --unit=test-slurmctld /srv/slurm/on one slurmctld -D
for host in one two; do
    systemd-run --quiet --unit=test-slurmd-$host /srv/slurm/on $host slurmd -D -N $host
done
"""

STOP = """
systemctl stop 'test-slurm*'
ip netns delete one
ip netns delete two
systemctl disable --now --quiet munge slurmctld slurmd
systemctl reset-failed
rm -rf /srv/slurm /etc/slurm/slurm.conf /etc/slurm/cgroup.conf
"""

# What a task has, and how it ends.
SHOW = """\
import os, sys
names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME"
group = open("/proc/self/cgroup").read().strip().rpartition("/")[2]
cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
print(*(os.environ.get(name) for name in names), cpus, os.environ["OMP_NUM_THREADS"], group, flush=True)
sys.exit(int(sys.argv[1]))
"""

# Trains with a loader worker in each rank until it is asked to stop.
TRAINS = """\
import os
import torch, torch.distributed as dist
import torchpar.runtime
from torch.utils.data import DataLoader

dist.init_process_group("gloo")
rank, step = dist.get_rank(), 0
loader = DataLoader(torch.ones(100000), batch_size=1, num_workers=1)
for batch in loader:
    dist.all_reduce(batch)
    step += 1
    if step == 10:
        print("rank", rank, "of", dist.get_world_size(), "trains on", *os.sched_getaffinity(0), flush=True)
    if torchpar.runtime.stop_requested():
        break
print("rank", rank, "saved", step, flush=True)
dist.destroy_process_group()
"""


class Cluster:
    """The machine with Slurm on it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def on(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on host one."""
        return self.machine.run("/srv/slurm/on", "one", "env", "-C", "/srv/slurm", *argv, check=check)

    def run(self, options: str, *argv: str, check: bool = True) -> tuple[list[str], str]:
        """What the tasks of a step print, sorted, and what torchpar says to them."""
        done = self.on("srun", *options.split(), "torchpar", "run", *argv, check=check)
        return sorted(done.stdout.splitlines()), done.stderr

    def train(self, options: str, *argv: str) -> tuple[subprocess.Popen[str], str]:
        """Start a step, wait until its rank 0 trains, and find its job."""
        command = ("env", "-C", "/srv/slurm", "srun", *options.split(), "torchpar", "run", *argv, "trains.py")
        process = self.machine.start("/srv/slurm/on", "one", *command, stderr=subprocess.STDOUT)
        assert process.stdout
        late = threading.Timer(DEADLINE, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("rank 0 "):
                    break
            else:
                pytest.fail(f"rank 0 does not train: {''.join(lines)}")
        finally:
            late.cancel()
        # One that completes is listed for a while.
        listed = ("squeue", "--noheader", "--states=RUNNING", "--format=%i")
        return process, self.on(*listed).stdout.strip()


@pytest.fixture(scope="module")
def cluster(machine: Machine) -> Iterator[Cluster]:
    """Two nodes that are idle; afterwards the machine is as it was."""
    shipped = machine.read(CONF)
    machine.install("iproute2", "munge", "slurm-wlm", recommends=False)
    machine.write("/etc/slurm/slurm.conf", SLURM)
    machine.write("/etc/slurm/cgroup.conf", CGROUP[machine.suite])
    machine.write("/srv/slurm/on", ENTER, 0o755)
    machine.write("/srv/slurm/hosts-one", "127.0.0.1 localhost\n127.0.1.1 one\n192.0.2.2 two\n")
    machine.write("/srv/slurm/hosts-two", "127.0.0.1 localhost\n192.0.2.1 one\n127.0.1.1 two\n")
    machine.write("/srv/slurm/show.py", SHOW)
    machine.write("/srv/slurm/trains.py", TRAINS)
    apply(machine, "[Train]\nAllocator=glibc\n[Train a]\nScript=/srv/slurm/show.py\nEnabled=yes\nCPUs=2\n")
    machine.sh(NETWORK)
    machine.sh(START)
    found = Cluster(machine)
    sinfo = ("sinfo", "--noheader", "--format=%D %t")
    machine.wait_until(lambda: found.on(*sinfo, check=False).stdout == "2 idle\n", "two idle nodes", DEADLINE)
    yield found
    machine.sh(STOP)
    apply(machine, shipped)


def test_a_job_has_what_slurm_has_given_it_and_no_unit(cluster: Cluster) -> None:
    """CPUs, threads, ranks and exit status; what is declared, and what is kept for the system, is none of its."""
    own = "test-slurmd-one.service"
    lines, said = cluster.run("-w one -n 1 -c 1", "show.py", "0")
    assert lines == [f"None None None None None None 0 1 {own}"] and re.search(r"Slurm step \d+\.0, task 0 of 1", said)
    assert "no slurmstepd runs this" not in said
    assert cluster.run("-w one -n 1 -c 2", "show.py", "0")[0] == [f"None None None None None None 0,1 2 {own}"]
    two = [f"{rank} 2 {rank} 2 127.0.0.1 lo {rank} 1 {own}" for rank in (0, 1)]
    assert cluster.run("-w one -n 2", "show.py", "0")[0] == two
    # Not bound one by one, they divide what they have together.
    assert cluster.run("-w one -n 2 --cpu-bind=none", "show.py", "0")[0] == two
    done = cluster.on("srun", "-n", "1", "torchpar", "run", "--set", "MemoryMax=1G", "show.py", "3", check=False)
    assert done.returncode == 3
    assert "the job is Slurm's, so it has no unit, and this is not set: MemoryMax=1G" in done.stderr
    left = cluster.machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "torchpar-run-*").stdout
    assert left == ""


def test_what_is_no_task_of_a_job_is_refused(cluster: Cluster) -> None:
    """A shell of salloc, variables that do not fit together, ranks of ranks; a batch script is told of srun."""
    done = cluster.on("salloc", "--quiet", "-n", "1", "torchpar", "run", "show.py", "0", check=False)
    assert done.returncode == 78 and "this is no task of that job: start it by srun" in done.stderr
    spoilt = ("srun", "-n", "1", "env", "SLURM_PROCID=7", "torchpar", "run", "show.py", "0")
    done = cluster.on(*spoilt, check=False)
    assert done.returncode == 78 and "SLURM_PROCID='7' is not a number from 0 to 0" in done.stderr
    _, said = cluster.run("-n 2", "--ranks", "2", "show.py", "0", check=False)
    assert "--ranks: srun has started" in said
    batch = "#!/bin/sh\ntorchpar run show.py 0\nsrun torchpar run show.py 0\n"
    cluster.machine.write("/srv/slurm/batch", batch, 0o755)
    cluster.on("sbatch", "--wait", "-N", "2", "-n", "2", "--output=out", "batch")
    printed = cluster.machine.read("/srv/slurm/out")
    assert "the allocation is for 2 tasks or hosts, and this is none of them but the batch script" in printed
    assert re.search(r"^None None None None None None ", printed, re.MULTILINE)
    for rank, host in enumerate(("one", "two")):
        line = rf"^{rank} 2 0 1 192\.0\.2\.1 eth-{host} [01,]+ [12] test-slurmd-{host}\.service$"
        assert re.search(line, printed, re.MULTILINE), printed


def test_scancel_lets_all_ranks_save(cluster: Cluster) -> None:
    """A task on each host is a rank; SIGTERM comes to each of their processes, loader workers among them."""
    process, job = cluster.train("-N 2 -n 2")
    cluster.on("scancel", job)
    out, _ = process.communicate(timeout=DEADLINE)
    saved = re.findall(r"^rank (\d) saved (\d+)$", out, re.MULTILINE)
    assert sorted(rank for rank, _ in saved) == ["0", "1"] and len({step for _, step in saved}) == 1, out
    assert "Traceback" not in out


def test_a_signal_before_the_end_of_the_time_lets_the_ranks_of_a_launcher_save(cluster: Cluster) -> None:
    """As of sbatch --signal=USR1@60: one task on each host has started two ranks, and ends as they do."""
    process, job = cluster.train("-N 2 --ntasks-per-node=1 -c 2", "--ranks", "2")
    cluster.on("scancel", f"--signal={signal.SIGUSR1.name}", f"{job}.0")
    out, _ = process.communicate(timeout=DEADLINE)
    saved = re.findall(r"^rank (\d) saved (\d+)$", out, re.MULTILINE)
    assert sorted(rank for rank, _ in saved) == ["0", "1", "2", "3"] and len({step for _, step in saved}) == 1, out
    assert process.returncode == 0, out
