"""Who cannot get in: what other users put in the way of a service's files, as the real systemd meets it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, apply, torchpar

SERVER = "torchpar-infer@walls.service"

# In the place of an interpreter: says which key it was given, and that it is ready.
PROGRAM = """\
#!/usr/bin/python3
import os, socket, time
with open(os.environ["CREDENTIALS_DIRECTORY"] + "/tls-key") as key:
    print("given:", key.readline().strip(), flush=True)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
    systemd.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
time.sleep(3600)
"""

TLS = """\
[Infer walls]
Handler=/srv/walls/handler.py
Python=/srv/walls/program
Listen=127.0.0.1:18765
TLSCertificate=/srv/walls/tls/key
TLSKey=/srv/walls/tls/key
User=mallory
Restart=no
"""


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with a user mallory and a folder of root's."""
    shipped = machine.read(CONF)
    machine.sh("useradd --create-home mallory; install -d /srv/walls/tls; echo key-of-root >/srv/walls/tls/key")
    machine.write("/srv/walls/handler.py", "")
    machine.write("/srv/walls/program", PROGRAM, 0o755)
    yield machine
    machine.sh("systemctl stop 'torchpar-infer@*' 'torchpar-train@*'; systemctl reset-failed; rm -rf /srv/walls")
    machine.sh("userdel --remove --force mallory")
    apply(machine, shipped)


def test_a_link_in_the_place_of_a_key_gives_nobody_what_root_can_read(host: Machine) -> None:
    """Neither when the conf is put in force, nor at a start, nor where systemd starts the service again."""
    host.sh("ln -s /etc/shadow /home/mallory/key")
    host.write(CONF, TLS.replace("/srv/walls/tls/key", "/home/mallory/key"))
    for command in ("validate", "apply"):
        status, _, errors = torchpar(host, command)
        assert status == 78
        assert "TLSKey=/home/mallory/key: /home/mallory, which is on the way, belongs to mallory" in errors
    apply(host, TLS)
    host.run("systemctl", "start", SERVER)
    assert "given: key-of-root" in host.journal(SERVER)

    # root has given the folder away since.
    host.sh("chown mallory /srv/walls/tls; ln -sf /etc/shadow /srv/walls/tls/key")
    assert host.run("systemctl", "restart", SERVER, check=False).returncode != 0
    said = "TLSKey=/srv/walls/tls/key: /srv/walls/tls does not belong to root"
    host.wait_until(lambda: said in host.journal(SERVER), "it is said")
    assert host.journal(SERVER).count("given: ") == 1
    assert not host.exists(f"/run/credentials/{SERVER}")

    host.sh("chown root /srv/walls/tls; rm /srv/walls/tls/key; echo again >/srv/walls/tls/key")
    host.run("systemctl", "start", SERVER)
    host.sh("chown mallory /srv/walls/tls; ln -sf /etc/shadow /srv/walls/tls/key; systemctl kill -s KILL $1", SERVER)
    host.run("systemctl", "start", SERVER, check=False)
    assert host.journal(SERVER).count("given: ") == 2
    host.sh("chown root /srv/walls/tls; rm /srv/walls/tls/key; echo once more >/srv/walls/tls/key")
    host.run("systemctl", "start", SERVER)
    assert "given: once more" in host.journal(SERVER)


def test_a_store_that_was_given_away_is_not_read(host: Machine) -> None:
    """A generation is made anew from the conf; where its folder is not root's, a job that is started says so."""
    host.write("/srv/walls/job.py", "import os; print('ran as', os.getuid(), flush=True)\n")
    apply(host, "[Train walls]\nScript=/srv/walls/job.py\nRestart=no\n")
    store = host.run("realpath", "/var/lib/torchpar/active").stdout.strip()
    host.sh("chown -R mallory $1", store)
    host.sh("echo '[Service]\nUser=root' >$1/units/torchpar-train@walls.service.d/20-torchpar.conf", store)
    host.run("systemctl", "daemon-reload")
    assert "User=root" not in host.run("systemctl", "cat", "torchpar-train@walls").stdout
    host.run("systemctl", "start", "torchpar-train@walls")
    host.wait_until(lambda: "ran as" in host.journal("torchpar-train@walls"), "it runs")
    assert "ran as 0" not in host.journal("torchpar-train@walls")
    assert host.run("realpath", "/var/lib/torchpar/active").stdout.strip() != store

    generations = "/var/lib/torchpar/generations"
    try:
        host.run("chown", "mallory", generations)
        host.run("systemctl", "daemon-reload")
        assert host.run("systemctl", "start", "torchpar-train@walls", check=False).returncode != 0
        assert f"others than root can change what decides what runs: {generations};" in host.journal(
            "torchpar-train@walls"
        )
        assert f"{generations}: must be a directory that only root can write" in host.journal("torchpar-recompile")
    finally:
        host.sh("chown root $1; systemctl daemon-reload; rm -r $2", generations, store)
    host.run("systemctl", "start", "torchpar-train@walls")
