"""Training jobs on a booted Debian with its torch: loader workers, the speed in the status, the allocator."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, TRAIN, apply
from tests.machines.test_daemon import DAEMON, status

# Its data take longer than its steps. Each sample says where it was made; the last batch is kept in a file.
FED = """\
import json, os, time, torch
from torch.utils.data import DataLoader, Dataset
class Slow(Dataset):
    def __len__(self): return 64
    def __getitem__(self, i):
        time.sleep(0.02)
        return torch.tensor([os.getpid(), torch.get_num_threads(), *sorted(os.sched_getaffinity(0))])
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = DataLoader(Slow(), batch_size=4)
while True:
    for batch in loader:
        model(batch[:, :1].float() * 0).sum().backward()
        optimizer.step()
        with open("seen.new", "w") as file:
            json.dump({"main": os.getpid(), "workers": loader.num_workers, "sample": batch[0].tolist()}, file)
        os.replace("seen.new", "seen.json")
"""

# Page faults of a step whose temporaries are larger than what malloc keeps by itself.
FAULTS = """\
import json, resource, torch
first, second = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 32, 3, padding=1)
model = torch.nn.Sequential(first, torch.nn.ReLU(), second)
data = torch.rand(24, 3, 64, 64)
def step():
    model.zero_grad()
    model(data).pow(2).mean().backward()
for _ in range(8): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8): step()
with open("faults.json", "w") as file:
    json.dump((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 8, file)
"""

@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine; afterwards it is as it was."""
    shipped = machine.read(CONF)
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*'; systemctl reset-failed")
    apply(machine, shipped)


def service(machine: Machine, name: str) -> dict[str, Any]:
    """A service in the status."""
    return next(s for s in status(machine)["services"] if s["unit"] == TRAIN.format(name))


def test_a_job_with_slow_data_has_workers_and_shows_it(host: Machine) -> None:
    """Workers on all CPUs with one thread, though OpenMP binds the main thread to one; the speed is in the status."""
    host.write("/srv/fed.py", FED)
    apply(host, "[Train fed]\nScript=/srv/fed.py\nThreads=1\nLoaderWorkers=1\nEnvironment=OMP_PROC_BIND=true\n")
    unit, file = TRAIN.format("fed"), "/var/lib/torchpar/train/fed/seen.json"
    host.run("systemctl", "start", unit)
    host.wait_until(lambda: host.run("test", "-e", file, check=False).returncode == 0, "the first batch")
    seen = json.loads(host.read(file))
    assert (str(seen["main"]), seen["workers"]) == (host.show(unit, "MainPID"), 1)
    worker, threads, *cpus = seen["sample"]
    assert worker != seen["main"] and threads == 1
    planned = service(host, "fed")["cpus"]
    assert ",".join(map(str, cpus)) == planned.replace("-", ",") and len(cpus) == 2
    # What the worker would have had without us: what its parent has.
    main = host.sh('sed -n "s/^Cpus_allowed_list:[[:space:]]*//p" /proc/$1/status', str(seen["main"])).stdout
    assert main.strip() in ("0", "1")
    assert "gets num_workers=1, as torchpar.conf asks" in host.journal(unit)

    host.wait_until(lambda: service(host, "fed")["throughput"], "two reports")
    host.wait_until(lambda: service(host, "fed")["throughput"]["bound"] == "loader", "it waits for data")
    throughput = service(host, "fed")["throughput"]
    assert throughput["samples_per_second"] > 0 and throughput["ranks"] == 1
    # A batch has 4 samples, and one may be counted whose step is not done yet.
    assert 1.5 < throughput["samples_per_second"] / throughput["steps_per_second"] < 8
    shown = host.run("torchpar", "status", check=False).stdout
    line = next(line for line in shown.splitlines() if "train@fed " in line)
    assert "samples/s" in line and "waited for data" in line
    # A torchpard that has just started knows it at once, and the job does not miss it meanwhile.
    host.run("systemctl", "restart", DAEMON)
    assert service(host, "fed")["throughput"]["bound"] == "loader"
    assert host.show(unit, "NRestarts") == "0"


def test_a_job_that_waits_for_its_data_is_told_what_would_help(host: Machine) -> None:
    """Nothing is changed: it loads in its own process until the conf says otherwise."""
    host.write("/srv/unfed.py", FED.replace("sleep(0.02)", "sleep(0.01)") + "        time.sleep(0.04)\n")
    apply(host, "[Train unfed]\nScript=/srv/unfed.py\nThreads=1\n")
    unit, file = TRAIN.format("unfed"), "/var/lib/torchpar/train/unfed/seen.json"
    host.run("systemctl", "start", unit)
    advice = re.compile(
        r"train@unfed .*waited for data \d+ % of the time; LoaderWorkers=1 \(num_workers=1 where the call names it\)"
        r" would leave about \d+ %; random transforms then draw from the workers' streams"
    )
    host.wait_until(lambda: advice.search(host.run("torchpar", "status", check=False).stdout), "the advice")
    seen = json.loads(host.read(file))
    assert (seen["workers"], seen["sample"][0]) == (0, seen["main"])
    host.run("systemctl", "stop", unit)
    explained = " ".join(host.run("torchpar", "explain", "unfed").stdout.split())
    assert re.search(r"half a minute of its last run waited for data \d+ % of the time; LoaderWorkers=1", explained)
    assert "LoaderWorkers=auto the calls in the script decide" in explained


def test_the_allocator_is_in_force_and_saves_the_page_faults(host: Machine) -> None:
    """At most a hundredth of glibc's per step; `torchpar verify` reads it from the process."""
    host.write("/srv/faults.py", FAULTS)
    host.write("/srv/wait.py", "import time\ntime.sleep(3600)\n")
    host.install("libjemalloc2", recommends=False)
    names = ("tcmalloc", "jemalloc", "glibc", "none")
    conf = "".join(f"[Train {name}]\nScript=/srv/faults.py\nAllocator={name}\nRestart=no\n" for name in names)
    apply(host, conf + "[Train waits]\nScript=/srv/wait.py\n")
    faults = {}
    for name in names:
        unit, file = TRAIN.format(name), f"/var/lib/torchpar/train/{name}/faults.json"
        host.run("systemctl", "start", unit)
        host.wait_until(lambda unit=unit: host.show(unit, "ActiveState") != "active", "its end")
        assert host.show(unit, "Result") == "success", host.journal(unit)
        faults[name] = json.loads(host.read(file))
    assert faults["none"] > 1000
    assert faults["tcmalloc"] <= faults["none"] / 100 and faults["jemalloc"] <= faults["none"] / 100, faults
    # Under load 7.5 % were seen, else less than 5.
    assert faults["glibc"] <= faults["none"] / 8, faults

    host.run("systemctl", "start", TRAIN.format("waits"))
    assert service(host, "waits")["allocator"] == "tcmalloc"
    # The unit is active when its interpreter is executed, before that has loaded its libraries.
    in_force = ("ok", "tcmalloc")
    host.wait_until(lambda: verified(host, "waits")["allocator"] == in_force, "the allocator is there")


# One process starts two, each with all the threads of the service.
SPAWNS = """\
import torch, torch.multiprocessing
def train(rank):
    weights = torch.rand(700, 700)
    while True:
        weights = torch.tanh(weights @ weights)
if __name__ == "__main__":
    torch.multiprocessing.spawn(train, nprocs=2)
"""


def test_a_script_that_starts_its_own_ranks_is_told_of_their_threads(host: Machine) -> None:
    """In the status and in the journal of torchpard; the plan says it before the start where it can."""
    host.write("/srv/spawns.py", SPAWNS)
    apply(host, "[Train spawns]\nScript=/srv/spawns.py\nRestart=no\n")
    unit = TRAIN.format("spawns")
    host.run("systemctl", "start", unit)
    said = "2 processes compute with 4 threads on 2 CPUs"
    host.wait_until(lambda: verified(host, "spawns")["threads"] == ("drift", said), "they compute")
    notice = "has 2 processes that compute with 4 threads on 2 CPUs: Threads=1 divides"
    host.wait_until(lambda: notice in host.run("torchpar", "status", check=False).stdout, "the notice")
    assert f"{unit} {notice}" in host.journal(DAEMON)

    host.write("/etc/torchpar.conf", "[Train runs]\nModule=torch.distributed.run\nArguments=--nproc-per-node=2 /x.py\n")
    assert "Module=torch.distributed.run starts ranks of its own" in host.run("torchpar", "plan").stderr


def verified(machine: Machine, name: str) -> dict[str, tuple[str, str]]:
    """The verdict of `torchpar verify` on each item of a service, and what is."""
    # The exit status is of all items; some cannot be told in a container.
    (answer,) = json.loads(machine.run("torchpar", "verify", "--json", f"train@{name}", check=False).stdout)
    return {item["what"]: (item["verdict"], item["actual"]) for item in answer["items"]}
