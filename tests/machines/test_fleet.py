"""Facts that a booted host exports: another one says of it what it says of itself, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine

CONF = "/etc/torchpar.conf"
FACTS = "/root/host.json"

TEXT = """\
[Train a]
Script=/srv/job.py
Enabled=yes
[Train b]
Script=/srv/missing.py
User=nosuch
[Infer c]
Model=/srv/missing.pt
"""

# Another host: of this one it has neither the name nor the hardware, the jobs, the state nor the packages.
ELSEWHERE = """\
hostname elsewhere
for folder in /sys /srv /var/lib/torchpar /var/lib/dpkg /run/systemd; do mount -t tmpfs tmpfs $folder; done
exec "$@"
"""


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with a job that runs; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/job.py", "import time\ntime.sleep(3600)\n")
    machine.write(CONF, TEXT)
    machine.run("torchpar", "apply", "--afresh")
    machine.run("systemctl", "start", "torchpar-train@a.service")
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*'; systemctl reset-failed")
    machine.run("rm", "-rf", "/root/conf", "/root/fleet", FACTS)
    machine.write(CONF, shipped)
    machine.run("torchpar", "apply", "--afresh")


def test_a_host_is_planned_for_elsewhere_as_by_itself(host: Machine) -> None:
    """Units, plan with its warnings, and what an edit changes and would restart."""
    host.sh(f"torchpar facts >{FACTS}; mkdir -p /root/conf; cp {CONF} /root/conf/")
    edited = TEXT.replace("Enabled=yes", "Enabled=yes\nThreads=1\nInteropThreads=3")
    for conf, statuses in ((TEXT, (0,)), (edited, (0, 2))):
        host.write(CONF, conf)
        host.write("/root/conf/torchpar.conf", conf)
        for command in ("render", "plan --json", "plan", "validate", "diff --json"):
            here = host.run("torchpar", *command.split(), check=False)
            there = host.run(
                *("unshare", "--mount", "--uts", "sh", "-ec", ELSEWHERE, "sh", "torchpar", *command.split()),
                *("--facts", FACTS, "--config", "/root/conf"),
                check=False,
            )
            assert (there.returncode, there.stdout, there.stderr) == (here.returncode, here.stdout, here.stderr)
            assert here.returncode in statuses and here.stdout
    assert "InteropThreads" in here.stdout and '"restart_required": true' in here.stdout


def test_a_fleet_is_looked_at_with_what_the_package_has(host: Machine) -> None:
    """More hosts than one process plans, one of them damaged; and the page is made of the installed files."""
    host.sh("mkdir -p /root/fleet; torchpar facts >/root/fleet/a; head -c 999 /root/fleet/a >/root/fleet/b")
    named = 's/^  .hostname.: .*/  \\"hostname\\": \\"n$i\\",/'
    host.sh(f'cd /root/fleet; for i in $(seq 20); do sed "{named}" a >n$i; done')
    done = host.run("torchpar", "fleet", "check", "--facts", "/root/fleet", check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert "! /root/fleet/b: is not JSON" in done.stdout and "in force on 21, to be applied on 0" in done.stdout
    host.run("rm", "/root/fleet/b")
    assert host.run("torchpar", "fleet", "check", "--facts", "/root/fleet").returncode == 0
    page = host.sh("torchpar fleet report --facts /root/fleet").stdout
    assert "<td>n20</td>" in page and page.count("data-plan=") == 21 and page.endswith("</html>")


def test_the_facts_are_ansibles_and_facters(host: Machine) -> None:
    """By the links that the manual page names."""
    scripts = "/usr/share/torchpar/facts"
    local = host.sh(f"ln -s {scripts}/torchpar.fact /run/; /run/torchpar.fact; rm /run/torchpar.fact").stdout
    below = host.sh(f"{scripts}/torchpar-facter | python3 -c 'import json, sys; print(json.load(sys.stdin).keys())'")
    assert below.stdout == "dict_keys(['torchpar'])\n"
    versions = json.loads(local)["versions"]
    installed = host.sh("dpkg-query -W -f='${Version}' torchpar").stdout
    assert versions["packages"]["torchpar"] == installed and versions["blas"]
