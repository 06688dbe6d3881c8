"""The store with faults at the calls that change it, on full and read-only disks, and drifted, on a booted Debian.

ALL_FAULTS=1 in the environment tries each error at each call, which takes half an hour.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, SCRIPT, TRAIN, apply, generation, held_cpus, torchpar

STORE = "/var/lib/torchpar"

ONE = "[Train a]\nScript=/srv/job.py\nEnabled=yes\nCPUs=1-1\nMemoryMax=999M\n"
OTHER = ONE.replace("999M", "998M")


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with a job that runs; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/job.py", SCRIPT)
    apply(machine, ONE)
    machine.run("systemctl", "start", TRAIN.format("a"))
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*' torchpar-way-back; systemctl reset-failed")
    apply(machine, shipped)


def test_a_fault_at_each_call_leaves_the_old_or_the_new_and_is_told_truly(
    host: Machine, progress: Callable[[str], None]
) -> None:
    """An error, or SIGKILL: counted by call, whatever the time. A running job keeps its CPUs, a way back is never lost,
    and the next command leaves nothing over."""
    host.install("strace", recommends=False)
    host.push(Path(__file__).with_name("faults.py"), "/srv/faults.py")
    everything = ["all"] if os.environ.get("ALL_FAULTS") else []
    for command in ("confirm-within", "rollback", "confirm", *(["apply"] if everything else [])):
        done = host.run("python3", "/srv/faults.py", command, *everything, timeout=3600)
        lines = done.stdout.splitlines()
        assert not any(line.startswith("WRONG") for line in lines), done.stdout
        progress(lines[-1])


def test_a_disk_that_cannot_be_written_changes_nothing(host: Machine) -> None:
    """The store or its generations on a file system of their own that is read-only, the store on a full one, /run full:
    what can be said of the store still is, and the error is true."""
    before = generation(host)
    host.write(CONF, OTHER)
    for place in (STORE, f"{STORE}/generations"):
        host.sh('mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', place)
        try:
            status, _, errors = torchpar(host, "apply")
            assert status == 1 and "Read-only file system; nothing has changed" in errors
            assert torchpar(host, "check") == (2, f"{TRAIN.format('a')}: changed\n", "")
            host.write(CONF, ONE)
            assert torchpar(host, "apply")[0] == 0
            host.write(CONF, OTHER)
        finally:
            host.run("umount", place)
    with host.full_disk(STORE):
        status, _, errors = torchpar(host, "apply")
        assert status == 1 and "No space left on device" in errors and "nothing has changed" in errors
        assert generation(host) == before
    host.sh("! dd if=/dev/zero of=/run/.full bs=64k 2>/dev/null")
    try:
        status, _, errors = torchpar(host, "apply")
        assert status == 1 and "No space left on device; nothing has changed" in errors
        # systemd refuses to reload while /run is full.
        status, _, errors = torchpar(host, "rollback")
        number = before.rpartition("/")[2]
        assert status == 1 and "Refusing to reload" in errors
        assert f"generation {number} is in force, as before" in errors
    finally:
        host.run("rm", "/run/.full")
    assert (generation(host), held_cpus(host, "a")) == (before, "1")
    assert host.show(TRAIN.format("a"), "MemoryMax") == str(999 * 2**20)
    host.run("torchpar", "apply")
    assert torchpar(host, "check") == (0, "", "")


def test_torchpard_goes_on_while_no_disk_can_be_written(host: Machine) -> None:
    """/var is read-only, also at its start; then /run is full: it answers, and sees a job end and another start."""

    def look() -> tuple[str, str]:
        answer = json.loads(torchpar(host, "status", "--json", "a")[1])
        assert not any("torchpard does not answer" in notice for notice in answer["notices"]), answer["notices"]
        (row,) = answer["services"]
        return row["state"], row["placed"]

    host.sh("mount --bind /var /var; mount -o remount,bind,ro /var")
    try:
        host.run("systemctl", "restart", "torchpard")
        assert look() == ("running", "ok")
        host.sh("! dd if=/dev/zero of=/run/.full bs=64k 2>/dev/null")
        assert look() == ("running", "ok")
        host.run("systemctl", "stop", TRAIN.format("a"))
        assert look() == ("stopped", None)
    finally:
        host.sh("rm -f /run/.full; umount --lazy /var")
    host.run("systemctl", "start", TRAIN.format("a"))
    assert look() == ("running", "ok") and host.show("torchpard", "NRestarts") == "0"


WANTS = "active/units/torchpar.target.wants"

DRIFTS = {
    f"rm {WANTS}/torchpar-train@a.service": "torchpar-train@a.service: is not there",
    "touch active/units/x.service": "x.service: is not torchpar's",
    "rm active && cp -a generations/$(ls generations | sort -n | tail -n1) active": "active: is not a link",
    "rm -r generations && echo x >generations": "generations: is not a directory",
    "chown torchpar . active/plan.json && chmod 777 generations": "belongs to user",
    "mkdir generations/.7.new && ln -s generations/7 .active.new": "is left of a torchpar that was killed",
}


def test_drift_of_the_store_is_seen_and_mended_though_the_conf_has_not_changed(host: Machine) -> None:
    """By check with its exit status, by status as a notice; a job that runs keeps its CPUs."""
    host.run("systemctl", "stop", "torchpard")
    try:
        for damage, told in DRIFTS.items():
            host.sh(f'cd "$1"; {damage}', STORE)
            status, output, errors = torchpar(host, "check")
            assert status == 2 and told in output, (damage, output, errors)
            assert told in torchpar(host, "status")[1]
            assert torchpar(host, "apply")[0] == 0
            assert torchpar(host, "check") == (0, "", ""), damage
    finally:
        host.run("systemctl", "start", "torchpard")
    assert held_cpus(host, "a") == "1" and host.show(TRAIN.format("a"), "AllowedCPUs") == "1"


def test_what_others_can_change_is_not_loaded_and_not_compiled(host: Machine) -> None:
    """They would run what they like as root: neither the generator nor the recompile uses it."""
    host.sh(
        'cd "$1/active"; printf "[Service]\\nUser=root\\nMemoryMax=1M\\n" >units/torchpar-train@a.service.d/30-x.conf;'
        " echo Threads=2 >>conf/001; sha256sum $(find . -type f ! -name sha256sums | cut -c3-) >/run/sums;"
        " cat /run/sums >sha256sums; chown -R daemon .",
        STORE,
    )
    before = generation(host)
    host.run("systemctl", "daemon-reload")
    assert "30-x.conf" not in host.show(TRAIN.format("a"), "DropInPaths")
    host.run("systemctl", "restart", TRAIN.format("a"))
    assert generation(host) != before and held_cpus(host, "a") == "1"
    assert host.show(TRAIN.format("a"), "MemoryMax") == str(999 * 2**20)
    assert "Threads=2" not in host.sh('cat "$1"/active/conf/*', STORE).stdout
    assert torchpar(host, "rollback", before.rpartition("/")[2])[0] == 1
