"""Booted Debian 12 and 13 as one fleet, managed by the Ansible of either release as torchpar-rollout(7) says: files and
commands of that page as they stand there, but for addresses and the number of a version."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.machines.container import missing_here
from tests.machines.machine import PATIENCE, Machine
from tests.machines.managed import FOLDER, Fleet, Played, boot_fleet
from tests.machines.package import build_package
from tests.machines.roots import TREE, Suite, suite_of_this_host
from tests.machines.test_apply import SCRIPT, TRAIN, generation
from tests.machines.test_way_back import UNIT as WAY_BACK
from tests.machines.test_way_back import end_time
from torchpar.contract.version import version

# The canary comes first. Each is a controller, too.
CANARY, OTHER = "gpu1", "gpu2"
ONE = os.environ.get("SUITE")
FLEET = {CANARY: Suite(ONE or Suite.BOOKWORM), OTHER: Suite(ONE or Suite.TRIXIE)}

JOB = TRAIN.format("resnet")
CONF = "/etc/torchpar.conf.d/50-site.conf"
GATE = "/run/gate"
EDIT = {"Enabled=yes": "Enabled=yes\n    Threads=1\n    InteropThreads=2"}

SOURCE = (TREE / "debian/man/torchpar-rollout.7").read_text(encoding="utf-8")
PAGE = {
    name: text.replace("\\-", "-").replace("\\e\n", "\\\n")
    for name, text in re.findall(r'^\.\\" (\S+)\n\.EX\n(.*?)\.EE$', SOURCE, re.MULTILINE | re.DOTALL)
}

# $1 the address. Two versions of the package, in a repository as any: signed, and read by http.
REPOSITORY = """
mkdir -p /srv/repo/pool /srv/repo/dists/stable/main/binary-amd64
cd /srv/repo
cp /root/torchpar.deb pool/torchpar.deb
dpkg-deb -R pool/torchpar.deb /tmp/next
sed -i 's/^Version: .*/Version: 999/' /tmp/next/DEBIAN/control
rm /tmp/next/DEBIAN/md5sums
dpkg-deb --root-owner-group -Znone -b /tmp/next pool/next.deb >/dev/null
apt-ftparchive packages pool >dists/stable/main/binary-amd64/Packages
apt-ftparchive -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Components=main \
    -o APT::FTPArchive::Release::Architectures=amd64 release dists/stable >/tmp/Release
gpg --batch --quiet --passphrase '' --quick-gen-key torchpar@example.org ed25519 sign never
gpg --clearsign --output dists/stable/InRelease /tmp/Release
gpg --armor --export torchpar@example.org >/root/torchpar.asc
systemd-run --quiet --unit=repository --working-directory=/srv/repo python3 -m http.server --bind "$1" 8000
"""


def commands(name: str) -> list[str]:
    """The commands of an example of the page."""
    return [line.removeprefix("# ") for line in PAGE[name].replace("\\\n", "").splitlines()]


@pytest.fixture(scope="module")
def fleet(progress: Callable[[str], None]) -> Iterator[Fleet]:
    """A fleet without torchpar, with the repository and the files of the page on each host."""
    if missing := missing_here():
        pytest.fail(missing, pytrace=False)
    deb = build_package(suite_of_this_host() or Suite.BOOKWORM, progress)
    with boot_fleet(FLEET, progress) as booted:
        canary = booted.hosts[CANARY]
        for machine in booted.hosts.values():
            machine.push(deb, "/root/torchpar.deb")
            machine.push(deb, f"{FOLDER}/torchpar.deb")
            machine.write("/srv/resnet/train.py", SCRIPT)
            # Nothing of this needs torch.
            machine.write("/etc/apt/apt.conf.d/95lean", 'APT::Install-Recommends "false";\n')
            for command in commands("controller"):
                machine.sh(f"cd {FOLDER}; {command}")
        canary.sh(REPOSITORY, booted.addresses[0])
        booted.hosts[OTHER].write("/root/torchpar.asc", canary.read("/root/torchpar.asc"))
        hosts = PAGE["hosts"]
        for name, address in zip(FLEET, booted.addresses, strict=True):
            hosts = hosts.replace(f"{name}\n", f"{name} ansible_host={address} ansible_port=2222 ansible_user=root\n")
        booted.write("hosts", hosts)
        write_site(booted)
        yield booted


def write_site(fleet: Fleet, *more: str, **changes: str) -> None:
    """Write the page's site.yml, with further variables, and with other texts in place of some of it."""
    text = PAGE["site"].replace("https://deb.example.org/torchpar", f"http://{fleet.addresses[0]}:8000")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    fleet.write("site.yml", "\n".join((text, "torchpar_settle: 2", *more, "")))


def play(fleet: Fleet, controller: str, name: str, *, status: int = 0, **words: str) -> Played:
    """Run the one command of an example, and expect this exit status."""
    (command,) = commands(name)
    for old, new in words.items():
        command = command.replace(old, new)
    played = fleet.ansible(controller, command)
    assert played.status == status, played.said
    return played


def settled(machine: Machine) -> bool:
    """Whether nothing waits for a confirmation, and the conf is in force."""
    waits = machine.sh("ls /var/lib/torchpar/generations/*.unconfirmed", check=False).returncode == 0
    return not waits and machine.run("torchpar", "check", check=False).returncode == 0


def goes_back(machine: Machine, good: str) -> None:
    """Wait until what is on trial has been taken back, as if its time had passed."""
    end_time(machine)
    machine.run("systemctl", "restart", WAY_BACK)
    machine.wait_until(lambda: generation(machine) == good, "it goes back")
    machine.wait_until(lambda: machine.show(JOB, "ActiveState") == "active", "its job runs again")


def test_an_empty_fleet_becomes_what_check_said_and_stays_so(fleet: Fleet) -> None:
    """By Debian 12's Ansible, wave after wave; a second run changes nothing, also by Debian 13's."""
    write_site(fleet, **{"/root/torchpar.asc": "/root/none.asc"})
    assert "none.asc" in play(fleet, CANARY, "check", status=2).said
    assert fleet.hosts[CANARY].sh("find /tmp -maxdepth 1 -name 'torchpar.*'").stdout == ""
    write_site(fleet)
    said = play(fleet, CANARY, "check")
    assert not any(machine.exists("/usr/bin/torchpar") for machine in fleet.hosts.values())
    done = play(fleet, CANARY, "rollout")
    assert said.counts("changed") == done.counts("changed") and min(done.counts("changed").values()) > 0
    assert done.said.count("PLAY [Roll torchpar out]") == 2
    for command in commands("start"):
        started = fleet.ansible(CANARY, command)
        assert started.status == 0, started.said
    assert started.said.count("train@resnet") == 2
    again = play(fleet, OTHER, "waves")
    assert again.counts("changed") == {CANARY: 0, OTHER: 0}, again.said
    for machine in fleet.hosts.values():
        assert settled(machine)
        assert machine.show(JOB, "ActiveState") == "active"
    assert play(fleet, OTHER, "facts").said.count('"online_cpus"') == 2


def test_an_edit_does_what_check_said_and_an_invalid_one_never_lands(fleet: Fleet) -> None:
    """By Debian 13's Ansible. Two files that name one CPU are each valid; the job is restarted as the conf asks."""
    other = fleet.hosts[OTHER]
    before = {name: (machine.read(CONF), generation(machine)) for name, machine in fleet.hosts.items()}
    hand = "/etc/torchpar.conf.d/60-hand.conf"
    other.write(hand, "[Train hand]\nScript=/srv/resnet/train.py\nEnabled=yes\nCPUs=0-0\n")
    write_site(fleet, **{"Enabled=yes": "Enabled=yes\n    CPUs=0-0"})
    for name in ("check", "rollout"):
        (command,) = commands(name)
        refused = fleet.ansible(OTHER, f"{command} -e '{{\"torchpar_waves\": [2]}}'")
        assert refused.status == 2 and f"{CONF}:4: " in refused.said, refused.said
    assert before == {name: (machine.read(CONF), generation(machine)) for name, machine in fleet.hosts.items()}
    pids = [machine.show(JOB, "MainPID") for machine in fleet.hosts.values()]
    edit = "Enabled=yes\n    Threads=1\n    InteropThreads=3\n  60-hand.conf: ''"
    # As it is by default; the edit after it restarts what is left here.
    write_site(fleet, **{"Enabled=yes": edit, "torchpar_restart: if-changed\n": ""})
    assert play(fleet, OTHER, "waves").counts("changed") == {CANARY: 2, OTHER: 3} and not other.exists(hand)
    for machine, pid in zip(fleet.hosts.values(), pids, strict=True):
        assert settled(machine) and machine.show(JOB, "MainPID") == pid
        assert "what was in force when it started" in machine.run("torchpar", "status", check=False).stdout
    write_site(fleet, **EDIT)
    pid = other.show(JOB, "MainPID")
    said, done = play(fleet, OTHER, "check"), play(fleet, OTHER, "waves")
    assert said.counts("changed") == done.counts("changed") == {CANARY: 2, OTHER: 2}
    assert "+InteropThreads=2\n" in said.said and f"+++ planned/{JOB}" in said.said
    assert other.show(JOB, "MainPID") not in (pid, "0") and all(map(settled, fleet.hosts.values()))


def test_a_broken_canary_stops_the_rollout_and_goes_back_by_itself(fleet: Fleet) -> None:
    """With its job, which had failed for good. The other host is as it was."""
    canary, other = fleet.hosts.values()
    good, untouched = generation(canary), (generation(other), other.read(CONF), other.show(JOB, "MainPID"))
    # On a busy host it has not failed yet when the others have looked.
    ill = f"torchpar_gate: [sh, -c, 'while systemctl is-active --quiet {JOB}; do sleep 1; done; torchpar status']"
    write_site(fleet, ill, **{"train.py": "none.py"})
    broken = play(fleet, CANARY, "rollout", status=2)
    assert broken.counts("failed") == {CANARY: 1} and "/srv/resnet/none.py: no such file" in broken.said
    assert canary.show(JOB, "ActiveState") == "failed" and generation(canary) != good
    goes_back(canary, good)
    assert untouched == (generation(other), other.read(CONF), other.show(JOB, "MainPID"))
    # What a person does then: the last files again.
    canary.write(CONF, other.read(CONF))
    canary.run("torchpar", "apply")
    assert settled(canary) and generation(canary) == good


def test_a_connection_that_dies_is_no_confirmation(fleet: Fleet) -> None:
    """The canary is lost while its change is on trial, and goes back by itself; the other host is as it was. Once it
    can be reached again it gets the same conf by the same command."""
    canary, other = fleet.hosts.values()
    good, untouched = generation(canary), (generation(other), other.read(CONF), other.show(JOB, "MainPID"))
    edit = {"Enabled=yes": EDIT["Enabled=yes"].replace("InteropThreads=2", "InteropThreads=4")}
    write_site(fleet, f"torchpar_gate: [sh, -c, 'touch {GATE}; while [ -e {GATE} ]; do sleep 1; done']", **edit)
    with ThreadPoolExecutor() as pool:
        rollout = pool.submit(play, fleet, OTHER, "rollout", status=2)
        is_asked = "the canary is asked whether it is well"
        canary.wait_until(lambda: rollout.done() or canary.exists(GATE), is_asked, 6 * PATIENCE)
        canary.sh("pkill -f '^sshd.*: root@'", check=False)
        lost = rollout.result()
    assert f"Lost: {CANARY}" in lost.said and lost.counts("unreachable")[CANARY] == 1
    canary.run("rm", GATE)
    assert generation(canary) != good
    goes_back(canary, good)
    assert untouched == (generation(other), other.read(CONF), other.show(JOB, "MainPID"))
    for changes in (edit, EDIT):
        write_site(fleet, **changes)
        for command in commands("rollout"):
            done = fleet.ansible(OTHER, f"{command} -l {CANARY}")
            assert done.status == 0 and done.counts("changed")[CANARY] > 0, done.said
        assert settled(canary)


def test_a_rollback_is_done_by_a_person(fleet: Fleet) -> None:
    """On the hosts that they name; the conf stays, and the next rollout puts it in force again."""
    canary = fleet.hosts[CANARY]
    before, pid = generation(canary), canary.show(JOB, "MainPID")
    done = play(fleet, CANARY, "rollback")
    assert list(done.hosts) == [CANARY] and generation(canary) != before
    assert canary.show(JOB, "MainPID") not in (pid, "0")
    assert canary.run("torchpar", "check", check=False).returncode == 2
    canary.run("torchpar", "apply", "--restart=if-changed")


def test_a_version_is_what_is_asked_for_and_what_is_removed_is_gone(fleet: Fleet) -> None:
    """Down and up again, beside jobs that go on; then nothing is left but what the site has written."""
    write_site(fleet, **EDIT)
    pids = [machine.show(JOB, "MainPID") for machine in fleet.hosts.values()]
    for wanted, last in ((version(), ""), ("999", f" -l {CANARY}")):
        done = play(fleet, CANARY, "version", VERSION=f"{wanted}{last}")
        for host in done.hosts:
            assert fleet.hosts[host].run("dpkg-query", "-W", "-f", "${Version}", "torchpar").stdout == wanted
    assert pids == [machine.show(JOB, "MainPID") for machine in fleet.hosts.values()]
    fleet.write("own.yml", PAGE["own"])
    for changed in (2, 0):
        assert set(play(fleet, CANARY, "run-own").counts("changed").values()) == {changed}
    play(fleet, OTHER, "remove")
    for machine in fleet.hosts.values():
        assert not machine.exists("/usr/bin/torchpar")
        assert machine.sh("find /etc/apt /etc/ansible -name 'torchpar*'").stdout == ""
