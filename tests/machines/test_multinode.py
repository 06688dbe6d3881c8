"""A job of two hosts on one booted Debian: two services, each in a network of its own, joined by a cable.

Both have Debian's /etc/hosts, which calls the host itself 127.0.1.1, and both are called the same; only the address of
the endpoint tells them apart. They run as the units that the package ships, but without their confinement: systemd in a
container cannot have NetworkNamespacePath=, so the command enters the network by itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.roots import Suite
from tests.machines.test_apply import CONF, TRAIN, apply

DEADLINE = 300.0

# Counts steps together, and keeps the number of the last one; nothing is lost by a kill at any moment.
SCRIPT = """\
import os, time
import torch, torch.distributed as dist
import torchpar.runtime

path = os.path.join(os.environ["STATE_DIRECTORY"], "step")
dist.init_process_group("gloo")
step = torch.tensor(int(open(path).read()) if os.path.exists(path) else 0)
dist.all_reduce(step, op=dist.ReduceOp.MIN)
step, world = int(step), dist.get_world_size()
print(f"resume {step} of {world}", flush=True)
while not torchpar.runtime.stop_requested():
    ones = torch.ones(1000)
    dist.all_reduce(ones)
    assert ones[0] == world
    step += 1
    with open(path + ".new", "w") as file:
        file.write(str(step))
    os.replace(path + ".new", path)
    if step % 10 == 0:
        print(f"step {step}", flush=True)
    time.sleep(0.05)
dist.destroy_process_group()
print(f"saved {step}", flush=True)
"""

NETWORK = """
for host in one two; do
    ip netns add $host
    ip -n $host link set lo up
done
ip link add eth-one netns one type veth peer name eth-two netns two
ip -n one address add 192.0.2.1/24 dev eth-one
ip -n two address add 192.0.2.2/24 dev eth-two
ip -n one link set eth-one up
ip -n two link set eth-two up
"""

DROP_IN = """\
[Service]
RestartSec=1s
ExecStart=
ExecStart=+/srv/multinode/enter {host} {command}
"""

# $1 the host; then the command. No preload for setpriv: it aborts with jemalloc's threads, if that is the allocator.
ENTER = """\
#!/bin/sh -eu
exec nsenter --net=/run/netns/$1 unshare --mount sh -euc '
    mount --bind /srv/multinode/hosts-$0 /etc/hosts
    preload=$LD_PRELOAD
    unset LD_PRELOAD
    exec setpriv --reuid=torchpar --regid=torchpar --init-groups -- env LD_PRELOAD="$preload" "$@"
' "$@"
"""


class Pair:
    """The two hosts, "one" with the endpoint."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def start(self, host: str) -> None:
        """Start the job's part on a host."""
        self.machine.run("systemctl", "start", TRAIN.format(host))

    def said(self, host: str) -> str:
        """What that part has said so far, since the machine was booted."""
        return self.machine.journal(TRAIN.format(host))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait for as long as a busy machine may need."""
        self.machine.wait_until(condition, what, DEADLINE)

    def step(self, host: str) -> int:
        """The last step that it has saved."""
        return int(self.machine.sh("cat /var/lib/torchpar/train/$1/step 2>/dev/null || echo 0", host).stdout)

    def resumes(self, host: str) -> list[tuple[str, str]]:
        """The step and the number of hosts of each time that it began."""
        return re.findall(r"resume (\d+) of (\d+)", self.said(host))

    def wait_for_progress(self) -> None:
        """Wait until both have made some steps from now on."""
        goal = max(self.step("one"), self.step("two")) + 10
        self.wait(lambda: min(self.step("one"), self.step("two")) >= goal, f"step {goal}")


    def nettest(self, host: str) -> subprocess.Popen[str]:
        """Start it there; as systemd would start its unit in no host's network, it runs without one."""
        script = (
            'mount -t tmpfs tmpfs /run/systemd; mount --bind "/srv/multinode/hosts-$1" /etc/hosts;'
            " exec torchpar nettest one"
        )
        argv = ("ip", "netns", "exec", host, "unshare", "--mount", "sh", "-euc", script, "sh", host)
        return self.machine.start(*argv, stderr=subprocess.STDOUT)


@pytest.fixture
def pair(machine: Machine) -> Iterator[Pair]:
    """Two hosts with the job declared on both; afterwards the machine is as it was."""
    shipped = machine.read(CONF)
    machine.install("iproute2", recommends=False)
    machine.write("/srv/multinode/job.py", SCRIPT)
    machine.write("/srv/multinode/enter", ENTER, 0o755)
    name = machine.read("/proc/sys/kernel/hostname").strip()
    machine.write("/srv/multinode/hosts-one", f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    machine.write("/srv/multinode/hosts-two", f"127.0.0.1 localhost\n192.0.2.1 {name}\n127.0.1.1 two\n")
    apply(
        machine,
        "[Host]\nReserveCores=0\n[Train]\nNodes=2\nEnabled=yes\n"
        f"[Train one]\nScript=/srv/multinode/job.py\nEndpoint={name}:20500\n"
        # Two services of one host cannot be one job; below it becomes the other part of the same.
        f"[Train two]\nScript=/srv/multinode/job.py\nEndpoint={name}:20501\n",
    )
    services = json.loads(machine.run("torchpar", "plan", "--json").stdout)["services"]
    command = " ".join(next(service["command"] for service in services if service["name"] == "one"))
    jobs = {service["name"]: json.loads(service["environment"]["TORCHPAR_JOB"]) for service in services}
    same = json.dumps({**jobs["one"], "ranks": jobs["two"]["ranks"]}, separators=(",", ":"))
    for host, more in (("one", ""), ("two", f"Environment='TORCHPAR_JOB={same}'\n")):
        drop_in = DROP_IN.format(host=host, command=command) + more
        machine.write(f"/etc/systemd/system/{TRAIN.format(host)}.d/90-test.conf", drop_in)
    machine.run("systemctl", "daemon-reload")
    machine.sh(NETWORK)
    yield Pair(machine)
    machine.sh(
        "systemctl stop 'torchpar-train@*'; systemctl reset-failed; ip netns delete one; ip netns delete two;"
        " rm -r /srv/multinode /etc/systemd/system/torchpar-train@*.d;"
        " rm -rf /var/lib/torchpar/train/one /var/lib/torchpar/train/two"
    )
    apply(machine, shipped)


def test_two_hosts_meet_train_and_stop_together(pair: Pair) -> None:
    """Whoever is early waits, with one line; a stop of any host is one of the job, and it resumes where it was."""
    machine = pair.machine
    pair.start("two")
    waiting = "Connection refused; waiting for that host's part of the job"
    pair.wait(lambda: waiting in pair.said("two"), "the early host's line")
    pair.start("one")
    pair.wait_for_progress()
    assert pair.said("two").count(waiting) == 1
    assert "is 192.0.2.1 on eth-one to the others" in pair.said("one")
    assert "is 192.0.2.2 on eth-two to the others" in pair.said("two")
    for stopped in ("two", "one"):
        machine.run("systemctl", "stop", TRAIN.format(stopped), timeout=DEADLINE)
        for host in ("one", "two"):
            pair.wait(lambda host=host: machine.show(TRAIN.format(host), "ActiveState") == "inactive", "its end")
            assert machine.show(TRAIN.format(host), "Result") == "success"
        assert pair.step("one") == pair.step("two")
        saved = str(pair.step("one"))
        for host in ("one", "two"):
            pair.wait(lambda host=host, saved=saved: f"saved {saved}\n" in pair.said(host), "its last line")
        pair.start("one")
        pair.start("two")
        pair.wait_for_progress()
        assert pair.resumes("one")[-1] == pair.resumes("two")[-1] == (saved, "2")


def test_nettest_tells_what_is_between_the_hosts(pair: Pair) -> None:
    """Figures on each host, and the addresses that are really connected, by the rendezvous of the job itself."""
    tests = {host: pair.nettest(host) for host in ("two", "one")}
    try:
        said = {host: test.communicate(timeout=DEADLINE)[0] for host, test in tests.items()}
    finally:
        pair.machine.sh("for host in one two; do ip netns pids $host | xargs -r -n 1 sh -c 'kill -KILL $0'; done")
    for host, own, other in (("one", "192.0.2.1", "192.0.2.2"), ("two", "192.0.2.2", "192.0.2.1")):
        assert tests[host].returncode == 0, said[host]
        assert re.search(r"gloo, 2 ranks: all-reduce of 8 B takes \d+ µs, of 16 MiB [0-9.]+ ms", said[host])
        assert f"connected by eth-{host}, {own}, to {other}\n" in said[host]
    one_host = pair.machine.run("torchpar", "nettest", "nosuch", check=False)
    assert one_host.returncode == 64 and "no service 'nosuch' in torchpar.conf" in one_host.stderr


def test_a_job_outlives_each_of_its_hosts(pair: Pair, suite: Suite) -> None:
    """Killed wholly, the one with the endpoint too, all begin again together; a taken port is waited for."""
    if suite is not Suite.TRIXIE:
        pytest.skip("one release is enough for what is slow")
    machine = pair.machine
    server = machine.start("ip", "netns", "exec", "one", "python3", "-m", "http.server", "20500")
    listening = "ip netns exec one python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 20500))'"
    pair.wait(lambda: machine.sh(listening, check=False).returncode == 0, "the other server on the port")
    pair.start("one")
    pair.wait(lambda: "port 20500 of this host: Address already in use" in pair.said("one"), "the line on the port")
    os.killpg(server.pid, signal.SIGKILL)
    server.communicate()
    pair.start("two")
    pair.wait_for_progress()
    for killed, other in (("two", "one"), ("one", "two")):
        step, begun = pair.step(other), len(pair.resumes(other))
        machine.run("systemctl", "kill", "--kill-who=all", "--signal=KILL", TRAIN.format(killed))
        pair.wait(lambda other=other, begun=begun: len(pair.resumes(other)) > begun, "a new beginning")
        pair.wait_for_progress()
        resumed, hosts = pair.resumes(other)[-1]
        assert hosts == "2" and int(resumed) >= step - 1
        for host in ("one", "two"):
            assert machine.show(TRAIN.format(host), "ActiveState") == "active"
