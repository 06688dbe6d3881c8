"""Where people keep their data: in a login's home and folders, in those that the conf names, on mounts that come late.

A script says what it can do, and its last words are in the journal.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, apply

# Tries each of its arguments: a file to write, a folder whose mode or group to set as rsync does, a module to import.
WRITES = """\
import importlib, os, sys
for place in sys.argv[1:]:
    kind, _, path = place.rpartition(":")
    try:
        if kind == "import":
            importlib.import_module(path)
        elif kind == "chmod":
            os.chmod(path, 0o2775)
        elif kind == "chgrp":
            os.chown(path, -1, os.stat("/data/lab").st_gid)
        else:
            with open(os.path.expanduser(path), "w") as file:
                file.write("saved")
        print("can", place, flush=True)
    except (ImportError, OSError) as error:
        print("cannot", place, getattr(error, "strerror", error), flush=True)
print("home", os.environ["HOME"], os.path.expanduser("~"), "cwd", os.getcwd(), "umask %03o" % os.umask(0), flush=True)
"""

PEOPLE = """
id ml >/dev/null 2>&1 || useradd --create-home --shell /bin/bash ml
groupadd --force lab; usermod --append --groups lab ml
install -d -o ml /data /data/runs; install -d -g lab -m 2775 /data/lab
install -d -o torchpar /data/own /data/work '/data/100% "sure"'
install -d -o ml -m 2775 /data/group
su ml -c 'site=$(python3 -c "import site; print(site.getusersitepackages())"); mkdir -p "$site"; touch "$site/of_ml.py"'
"""

# The shared memory of two kinds that a notebook of ml's has open meanwhile.
SHARED = """
su ml -c 'echo data >/dev/shm/notebook; ipcmk --shmem 4096 >/dev/null'
"""


def journal(machine: Machine, name: str) -> list[str]:
    """The lines of a job in this boot, without the names that the journal puts before them."""
    unit = f"torchpar-train@{name}.service"
    return machine.run("journalctl", "--boot", "--output=cat", f"--unit={unit}").stdout.splitlines()


def run(machine: Machine, name: str) -> list[str]:
    """Run a job to its end; what it has said."""
    machine.run("systemctl", "start", f"torchpar-train@{name}")
    ended = ("inactive", "failed")
    machine.wait_until(lambda: machine.show(f"torchpar-train@{name}", "ActiveState") in ended, f"the end of {name}")
    machine.run("journalctl", "--sync")
    return journal(machine, name)


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with a user and folders for data; afterwards its conf is as it was."""
    shipped = machine.read(CONF)
    machine.sh(PEOPLE)
    for folder in ("/home/ml", "/srv/job"):
        machine.write(f"{folder}/writes.py", WRITES)
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*' 'torchpar-retry@*'; rm -rf /data /srv/job")
    apply(machine, shipped)


PLACES = "/data/runs/a /data/group/b ~/c /tmp/of-{0} /usr/local/d /etc/e e.txt"
PLACES += " chmod:/data/group chgrp:/data/group import:of_ml"

WRITING = f"""
[Host]
ReserveCores=0
[Train]
Allocator=glibc
[Train login]
Script=/home/ml/writes.py
User=ml
Arguments={PLACES.format("login")} /home/ml/beside /data/lab/f
[Train own]
Script=/srv/job/writes.py
WorkingDirectory=/data/work
ReadWritePaths=/data/own '/data/100% "sure"' -/data/maybe
Arguments={PLACES.format("own")} /data/own/g /srv/job/beside
"""


def test_a_job_writes_where_its_user_may_and_torchpars_own_where_the_conf_says(host: Machine) -> None:
    """A login's job has that login's home, packages, groups, /tmp and shared memory, which stay when it ends."""
    apply(host, WRITING)
    host.sh(SHARED)
    said = run(host, "login")
    cannot = [line for line in said if line.startswith("cannot")]
    assert cannot == ["cannot /usr/local/d Read-only file system", "cannot /etc/e Read-only file system"]
    assert "home /home/ml /home/ml cwd /var/lib/torchpar/train/login umask 022" in said
    assert host.read("/tmp/of-login") == "saved" and host.exists("/dev/shm/notebook")
    assert " ml " in host.run("ipcs", "--shmems").stdout
    host.sh("su ml -c 'rm /dev/shm/notebook; ipcrm --all'; rm /tmp/of-login")

    said = run(host, "own")
    can = [line.removeprefix("can ") for line in said if line.startswith("can ")]
    assert can == ["~/c", "/tmp/of-own", "e.txt", "/data/own/g"]
    assert "cannot /data/runs/a Read-only file system" in said and not host.exists("/tmp/of-own")
    home = "/var/cache/torchpar/train/own"
    assert f"home {home} {home} cwd /data/work umask 027" in said
    assert "/data/work /data/own" in host.run("torchpar", "explain", "own").stdout


# One mount that takes a while, one that fails at first, and one of which systemd knows nothing before it is there.
FSTAB = """\
/srv/real /srv/slow none bind,nofail,x-systemd.requires=slow.service 0 0
/srv/real /srv/flaky none bind,nofail,x-systemd.requires=flaky.service 0 0
"""
LATE_UNITS = {
    "slow": "ExecStart=/bin/sleep 6",
    "flaky": "ExecStart=/bin/sh -c '[ -e /run/tried ] || { touch /run/tried; exit 1; }'",
    "by-hand": "ExecStart=/bin/sleep 6\nExecStart=/bin/mount --bind /srv/real /srv/hand",
}
TIDY = """
systemctl stop 'torchpar-train@*' 'torchpar-retry@*'
for name in slow flaky hand; do umount /srv/$name || true; done
mv /etc/fstab.kept /etc/fstab
cd /etc/systemd/system
rm slow.service flaky.service by-hand.service multi-user.target.wants/by-hand.service
rm -rf /srv/real /srv/slow /srv/flaky /srv/hand /srv/link
systemctl daemon-reload
systemctl reset-failed
"""

LATE = """
[Host]
ReserveCores=0
[Train]
Allocator=glibc
Enabled=yes
CPUs=shared
[Train slow]
Script=/srv/slow/train.py
[Train flaky]
Script=/srv/flaky/train.py
[Train link]
Script=/srv/link/train.py
[Train python]
Script=/srv/job/train.py
Python=/srv/hand/python3
[Train folder]
Script=/srv/job/train.py
WorkingDirectory=/srv/hand/work
[Train writes]
Script=/srv/job/train.py
ReadWritePaths=/srv/hand/work
[Train gone]
Script=/srv/real/gone.py
"""


def test_a_job_starts_once_a_late_mount_is_there_and_a_missing_file_is_told_once(host: Machine) -> None:
    """Whether systemd knows the mount, whether it fails at first, and whichever key is on it; after a real boot."""
    host.sh("mkdir -p /srv/real/work /srv/slow /srv/flaky /srv/hand; ln -sfn hand /srv/link")
    for path in ("/srv/real/train.py", "/srv/job/train.py"):
        host.write(path, "import time\nprint('runs', flush=True)\ntime.sleep(3600)\n")
    host.sh("cp --dereference /usr/bin/python3 /srv/real/python3; touch /etc/fstab; cp /etc/fstab /etc/fstab.kept")
    host.sh('printf %s "$1" >>/etc/fstab', FSTAB)
    for name, lines in LATE_UNITS.items():
        host.write(
            f"/etc/systemd/system/{name}.service", f"[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n{lines}\n"
        )
    host.sh("systemctl add-wants multi-user.target by-hand.service")
    apply(host, LATE)
    host.reboot()
    try:
        names = ("slow", "flaky", "link", "python", "folder", "writes")
        for name in names:
            host.wait_until(lambda name=name: "runs" in journal(host, name), f"{name} runs")
        assert [host.show(f"torchpar-train@{name}", "ActiveState") for name in (*names, "gone")] == [
            *["active"] * len(names),
            "failed",
        ]
        assert host.show("torchpar-train@gone", "NRestarts") == "0"
        assert host.journal("torchpar-train@gone").count("]: torchpar: /srv/real/gone.py: no such file") == 1
        # What may still come is waited for, until somebody means that it should not be.
        retry = "torchpar-retry@torchpar-train@gone"
        assert host.show(retry, "ActiveState") == "active"
        told = "/srv/real/gone.py is not there yet: the service starts when it is"
        host.wait_until(lambda: told in host.journal("torchpar-train@gone"), "that it is waited for is in the journal")
        host.run("systemctl", "stop", "torchpar-train@gone")
        host.wait_until(lambda: host.show(retry, "ActiveState") == "inactive", "the waiting ends")
    finally:
        host.sh(TIDY)
