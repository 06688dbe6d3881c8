"""What keeps a service's user from its files is said before the service is started, and is then what systemd finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, TRAIN, apply, torchpar

# A home as Debian makes it, with a virtual environment whose interpreter is a link to another folder of that home.
HOME = """
id ml >/dev/null 2>&1 && userdel --force --remove ml
useradd --create-home ml
install -d -o ml -g ml /home/ml/share/bin /home/ml/venv/bin /home/ml/results
ln -s /usr/bin/python3 /home/ml/share/bin/python3
ln -s /home/ml/share/bin/python3 /home/ml/venv/bin/python3
ln -s /home/ml/venv /srv/venv
echo 'print("ran", flush=True)' >/home/ml/train.py
chmod 750 /home/ml
mkdir /srv/noexec; mount -t tmpfs -o noexec,mode=755 tmpfs /srv/noexec
mkdir /srv/noexec/bin; touch /srv/noexec/pyvenv.cfg; ln -s /usr/bin/python3 /srv/noexec/bin/python3
"""

# system.posix_acl_access, acl(5): mode 0750, and search for one more user. The package acl need not be there.
ALLOW = """
import os, pwd, struct, sys
user = pwd.getpwnam(sys.argv[2]).pw_uid
entries = [(1, 7, -1), (2, 1, user), (4, 5, -1), (16, 5, -1), (32, 0, -1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
os.setxattr(sys.argv[1], "system.posix_acl_access", acl)
"""

PRIVATE = "[Train a]\nScript=/home/ml/train.py\nPython=/srv/venv/bin/python3\nRestart=no\n"


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with the private home of a user ml."""
    shipped = machine.read(CONF)
    machine.sh(HOME)
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*'; systemctl reset-failed; umount /srv/noexec; userdel --remove ml")
    machine.sh("rm -rf /srv/venv /srv/noexec")
    apply(machine, shipped)


def runs(host: Machine) -> bool:
    """Whether the job of this conf runs when it is started."""
    started = host.run("systemctl", "start", TRAIN.format("a"), check=False).returncode == 0
    host.wait_until(lambda: host.show(TRAIN.format("a"), "ActiveState") in ("inactive", "failed"), "the job ends")
    return started and host.show(TRAIN.format("a"), "ExecMainStatus") == "0"


def test_a_private_home_is_told_by_apply_until_the_user_may_enter_it(host: Machine) -> None:
    """With the folder, and the way out, another user; that user's files are nobody else's to run."""
    host.write(CONF, PRIVATE)
    status, _, errors = torchpar(host, "apply")
    assert status == 0
    assert (
        "/etc/torchpar.conf:3: [Train a] Python=/srv/venv/bin/python3: user torchpar cannot enter /home/ml "
        "(mode 0750, ml:ml), to which links lead; set User=ml, whose home that is" in errors
    )
    assert "/etc/torchpar.conf:2: [Train a] Script=/home/ml/train.py: user torchpar cannot enter /home/ml" in errors
    assert not runs(host)
    assert "/srv/venv/bin/python3: Permission denied" in host.journal(TRAIN.format("a"))
    assert host.show(TRAIN.format("a"), "NRestarts") == "0"

    # Now ml, whose folders they are, could have torchpar run anything.
    host.run("python3", "-c", ALLOW, "/home/ml", "torchpar")
    for command in ("validate", "apply"):
        status, _, errors = torchpar(host, command)
        assert status == 78 and errors.count("belongs to ml") == 2
        assert (
            "/etc/torchpar.conf:2: [Train a] Script=/home/ml/train.py: /home/ml belongs to ml; whoever can change it "
            "runs as torchpar: set User=ml, or chown it to root or to torchpar" in errors
        )
    assert not runs(host)
    assert "/home/ml belongs to user ml, who could run anything as user torchpar" in host.journal(TRAIN.format("a"))

    host.sh("chmod 700 /home/ml")
    assert "cannot enter /home/ml" in torchpar(host, "validate")[2]
    host.write(CONF, PRIVATE + "User=ml\n")
    assert torchpar(host, "apply")[2] == "" and runs(host)


def test_folders_users_and_mounts_that_a_service_cannot_use_are_told(host: Machine) -> None:
    """Each with its line; whoever is not root hears what can be known without."""
    host.write(
        CONF,
        "[Train a]\nScript=/srv/none.py\nWorkingDirectory=/usr\nUser=ml\n[Train b]\nModule=this\nUser=nobody-here\n"
        "[Train c]\nModule=this\nUser=4242\n[Train d]\nModule=this\nPython=/srv/noexec/bin/python3\nUser=ml\n",
    )
    errors = torchpar(host, "validate")[2]
    for words in (
        "/etc/torchpar.conf:2: [Train a] Script=/srv/none.py: no such file on this host",
        "/etc/torchpar.conf:3: [Train a] WorkingDirectory=/usr: user ml cannot write there (mode 0755, root:root)",
        "/etc/torchpar.conf:7: [Train b] User=nobody-here: there is no such user on this host",
        "/etc/torchpar.conf:10: [Train c] User=4242: there is no such user on this host",
        "/etc/torchpar.conf:13: [Train d] Python=/srv/noexec/bin/python3: /srv/noexec/bin is on a mount with noexec",
    ):
        assert words in errors
    as_ml = ("setpriv", "--reuid=ml", "--regid=ml", "--init-groups", "torchpar", "validate")
    assert "WorkingDirectory=/usr: user ml cannot write there" in host.run(*as_ml).stderr
    as_daemon = ("setpriv", "--reuid=daemon", "--clear-groups", "torchpar", "validate")
    said = host.run(*as_daemon).stderr
    assert "Script=/srv/none.py: no such file" in said and "cannot write" not in said
