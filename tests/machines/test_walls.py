"""Who cannot get in: what other users put in the way of a service's files, as the real systemd meets it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, apply, torchpar
from tests.unit.hosts import make_host
from tests.unit.unit_file import read_unit
from torchpar.conf.parse import parse_config
from torchpar.conf.services import Service
from torchpar.conf.syntax import ConfFile
from torchpar.conf.values import simple_path
from torchpar.contract.errors import ConfigError
from torchpar.host.systemd import object_path
from torchpar.plan.plan import make_plan
from torchpar.units.drop_ins import make_units

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
    for line in ("EnvironmentFile=-/home/mallory/env", "StandardOutput=append:/home/mallory/log"):
        host.write(CONF, f"{TLS}Service.{line}\n")
        status, _, errors = torchpar(host, "validate")
        assert status == 78 and f"Service.{line}: /home/mallory, which is on the way, belongs" in errors
        status, _, errors = torchpar(host, "run", "--set", f"Service.{line}", "/srv/walls/handler.py")
        assert status == 78 and f"Service.{line}: /home/mallory, which is on the way, belongs" in errors
    host.write("/srv/walls/a%b", "GIVEN=by-root\n")
    host.write("/srv/walls/handler.py", "import os; print('GIVEN' in os.environ and os.environ['GIVEN'])\n")
    words = ("run", "--set", "Service.EnvironmentFile=/srv/walls/a%%b", "/srv/walls/handler.py")
    assert torchpar(host, *words)[1] == "by-root\n"
    apply(host, TLS)
    host.run("systemctl", "start", SERVER)
    host.wait_until(lambda: "given: key-of-root" in host.journal(SERVER), "it has the key")

    # root has given the folder away since.
    host.sh("chown mallory /srv/walls/tls; ln -sf /etc/shadow /srv/walls/tls/key")
    assert host.run("systemctl", "restart", SERVER, check=False).returncode != 0
    said = "TLSKey=/srv/walls/tls/key: /srv/walls/tls does not belong to root"
    host.wait_until(lambda: said in host.journal(SERVER), "it is said")
    assert host.journal(SERVER).count("given: ") == 1
    assert not host.exists(f"/run/credentials/{SERVER}")

    host.sh("chown root /srv/walls/tls; rm /srv/walls/tls/key; echo again >/srv/walls/tls/key")
    host.run("systemctl", "start", SERVER)
    host.wait_until(lambda: "given: again" in host.journal(SERVER), "it has the next key")
    host.sh("chown mallory /srv/walls/tls; ln -sf /etc/shadow /srv/walls/tls/key; systemctl kill -s KILL $1", SERVER)
    host.run("systemctl", "start", SERVER, check=False)
    assert host.journal(SERVER).count("given: ") == 2
    host.sh("chown root /srv/walls/tls; rm /srv/walls/tls/key; echo once more >/srv/walls/tls/key")
    host.run("systemctl", "start", SERVER)
    host.wait_until(lambda: "given: once more" in host.journal(SERVER), "it has the key again")


def test_a_store_that_was_given_away_is_not_read(host: Machine) -> None:
    """A generation is made anew from the conf; the folder of all of them is root's again before a job starts."""
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
    host.run("chown", "mallory", generations)
    host.run("systemctl", "daemon-reload")
    refusal = f"others than root can change what decides what runs: {generations};"
    assert refusal in host.run("systemctl", "cat", "torchpar-train@walls").stdout
    host.run("systemctl", "start", "torchpar-train@walls")
    assert host.run("stat", "--format=%U", generations).stdout == "root\n"


KINDS = """\
[Train own]
Script=/srv/walls/job.py
[Train tmp]
Script=/srv/walls/job.py
ReadWritePaths=-/tmp/walls
[Train user]
Script=/srv/walls/job.py
User=mallory
[Infer own]
Handler=/srv/walls/handler.py
[Infer user]
Handler=/srv/walls/handler.py
User=mallory
Listen=127.0.0.1:18765
"""

# What a job needs of /dev, of which it sees no more where there is nothing to compute on.
DEVICES = """\
import mmap, multiprocessing, os, tempfile
multiprocessing.Array("d", 1000)
with tempfile.TemporaryFile(dir="/dev/shm") as file:
    file.write(bytes(4096)); file.flush()
    mmap.mmap(file.fileno(), 4096)
mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
open("/dev/urandom", "rb").read(1); open("/dev/null", "w").write("x")
print("devices:", "rtc0" not in os.listdir("/dev"), flush=True)
"""


def test_the_exposure_of_a_declared_service_is_what_the_manual_says(host: Machine) -> None:
    """By systemd-analyze security, of what apply makes; and a job in it has shared memory and code of its own."""
    host.write("/srv/walls/job.py", DEVICES)
    apply(host, KINDS)
    computing = json.loads(torchpar(host, "plan", "--json")[1])["host"]["accelerators"]
    more = 0.2 if computing else 0
    for unit, most in (
        ("torchpard", 1.5),
        ("torchpar-train@own", 1.5 + more),
        ("torchpar-train@tmp", 1.7 + more),
        ("torchpar-train@user", 2.3 + more),
        ("torchpar-infer@own", 1.3 + 2 * more),
        ("torchpar-infer@user", 1.3 + 2 * more),
        ("torchpar-guard@own", 1.5),
    ):
        said = host.run("systemd-analyze", "security", "--no-pager", f"{unit}.service").stdout
        exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
        assert exposure and float(exposure[1]) <= most + 0.01, unit
    host.run("systemctl", "start", "torchpar-train@own")
    host.wait_until(lambda: "devices: True" in host.journal("torchpar-train@own"), "the job has what it needs")


# Of what values are made: all that is more than itself to a reader of lines or of words.
PIECES = ["a", "b", "=", ":", "/", "#", ";", "[x]", "\\", "\\\\", "%", "%%", "'", '"', " ", "  ", "\t", "ä", "\x0c"]


def test_systemd_reads_of_every_unit_what_the_conf_says(host: Machine) -> None:
    """Neither a quote nor a backslash at the end of a value makes it more or less than one, on the real systemd."""
    services = accepted(random.Random(1), 40)
    facts = make_host()
    for number, (service, text) in enumerate(services):
        plan = make_plan(parse_config([ConfFile("/c", text)], facts), facts)
        files = make_units(plan).files
        # In the order of the file; the directives of the conf are the last.
        assert [key for _, key, _ in read_unit(files[f"{service.unit}.d/20-torchpar.conf"])][-2:] == [
            "SyslogIdentifier",
            "Nice",
        ]
        for path, unit in files.items():
            host.write(f"/run/systemd/system/{path.replace('@a', f'@n{number}')}", unit)
    try:
        host.run("systemctl", "daemon-reload")
        for number, (service, _) in enumerate(services):
            path = object_path(f"torchpar-infer@n{number}.service")
            get = ("busctl", "--json=short", "get-property", "org.freedesktop.systemd1", path)
            names = ("WorkingDirectory", "SyslogIdentifier", "Nice", "LoadCredential", "Environment")
            said = host.run(*get, "org.freedesktop.systemd1.Service", *names).stdout
            directory, identifier, nice, credentials, environment = (
                json.loads(line)["data"] for line in said.splitlines()
            )
            settings, infer = service.settings, service.infer()
            assert infer and infer.tls_certificate and infer.tls_key
            assert directory.rstrip("/") == str(settings.working_directory).rstrip("/")
            assert (identifier, nice) == (dict(service.directives)["SyslogIdentifier"].replace("%%", "%"), 5)
            assert dict(credentials) == {
                "tls-certificate": simple_path(infer.tls_certificate),
                "tls-key": simple_path(infer.tls_key),
            }
            assert settings.environment[0] in environment
    finally:
        host.sh("rm -r /run/systemd/system/torchpar-*@n*.d; systemctl daemon-reload")


def accepted(chance: random.Random, number: int) -> list[tuple[Service, str]]:
    """Services with values of PIECES that torchpar.conf takes, and their confs."""
    found = []
    while len(found) < number:
        a, b, c, d = ("".join(chance.choices(PIECES, k=chance.randrange(1, 6))) for _ in range(4))
        text = (
            f"[Infer a]\nModel=/m\nWorkingDirectory=/srv/{a}\nTLSKey=/k/{b}\nTLSCertificate=/c/{c}\n"
            f"Environment=A={d}\nService.SyslogIdentifier=s{a.replace('%', '%%')}\nService.Nice=5\n"
        )
        try:
            (service,) = parse_config([ConfFile("/c", text)], make_host()).services
        except ConfigError:
            continue
        # A backslash at the end of a line of the conf has it go on in the next.
        keys = {"WorkingDirectory", "TLSKey", "TLSCertificate", "Environment", "Service.SyslogIdentifier"}
        if keys <= service.origins.keys() and "//" not in f"/{a}":
            found.append((service, text))
    return found
