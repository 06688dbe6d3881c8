"""The life of the package on a booted machine: install, upgrade, remove, purge, and what may be in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.machines.machine import Machine
from tests.machines.roots import Suite

DEPENDS = ("python3-click", "python3-debian", "python3-jinja2", "libtcmalloc-minimal4")

WAITING_JOB = """\
import signal
print("waiting", flush=True)
signal.pause()
"""

JOBS = """\
[Train waiting]
Script=/srv/waiting.py
Enabled=yes

[Train done]
Script=/srv/done.py
Enabled=yes
"""

# Where a package may leave something; not what dpkg, apt and systemd keep for themselves.
LEFT_BEHIND = """
find /etc /home /opt /root /run /srv /usr /var -xdev \
    -path /var/lib/dpkg -prune -o -path /var/lib/apt -prune -o -path /var/cache/apt -prune -o -path /var/log -prune -o \
    -path /var/cache/debconf -prune -o -path /var/cache/ldconfig -prune -o -path /var/lib/systemd/timers -prune -o \
    -path /run/systemd/journal -prune -o -path /run/systemd/units -prune -o -path /run/systemd/inaccessible -prune -o \
    -path /run/log -prune -o -print
[ ! -d /var/log/torchpar ] || find /var/log/torchpar
"""


@pytest.fixture(scope="module")
def prepared(suite: Suite, deb: Path, progress: Callable[[str], None]) -> Iterator[Machine]:
    """A machine with what the package depends on, and not the package; its file is /var/tmp/torchpar.deb."""
    with Machine(suite, "package", report=progress) as booted:
        booted.install(*DEPENDS, recommends=False)
        booted.push(deb, "/var/tmp/torchpar.deb")
        booted.write("/srv/waiting.py", WAITING_JOB)
        booted.write("/srv/done.py", 'print("done")\n')
        yield booted


@pytest.fixture
def clean(prepared: Machine) -> Iterator[Machine]:
    """That machine, for one test: the package is purged afterwards, with the conf that the test wrote."""
    yield prepared
    prepared.sh("rm -f /usr/sbin/policy-rc.d; dpkg --purge torchpar; rm -rf /etc/torchpar.conf*")


@pytest.fixture
def installed(clean: Machine) -> Machine:
    """The package on it, as shipped."""
    clean.install("/var/tmp/torchpar.deb", recommends=False)
    return clean


def start_jobs(machine: Machine) -> str:
    """Put JOBS in force, start both; the PID of the one that waits. The other has come to its end."""
    machine.write("/etc/torchpar.conf.d/50-jobs.conf", JOBS)
    machine.run("systemctl", "reload", "torchpard")
    machine.run("systemctl", "start", "torchpar-train@waiting", "torchpar-train@done")
    machine.wait_until(lambda: "waiting" in machine.journal("torchpar-train@waiting"), "the first line of the job")
    machine.wait_until(lambda: machine.show("torchpar-train@done", "SubState") == "dead", "the end of the other job")
    return machine.show("torchpar-train@waiting", "MainPID")


def upgrade(machine: Machine, version: str) -> str:
    """Install the same package under another version, and with a newer conffile; what dpkg printed."""
    machine.sh(
        "rm -rf /var/tmp/next; dpkg-deb -R /var/tmp/torchpar.deb /var/tmp/next; cd /var/tmp/next;"
        ' sed -i "s/^Version: .*/Version: $1/" DEBIAN/control; echo "# of version $1" >>etc/torchpar.conf;'
        " rm DEBIAN/md5sums; dpkg-deb --root-owner-group -b . /var/tmp/next.deb",
        version,
    )
    return machine.install("/var/tmp/next.deb", recommends=False)


def files(machine: Machine) -> set[str]:
    return set(machine.sh(LEFT_BEHIND).stdout.splitlines())


def active(machine: Machine, unit: str) -> str:
    return machine.run("systemctl", "is-active", unit, check=False).stdout.strip()


def test_apt_brings_torch_and_a_fast_blas(machine: Machine) -> None:
    """Debian's libblas3, which is what torch alone brings, is 14 to 50 times slower."""
    assert machine.run("/usr/bin/python3", "-c", "import torch; print(torch.ones(2).sum().item())").stdout == "2.0\n"
    blas = machine.sh("readlink -f /etc/alternatives/libblas.so.3-*").stdout
    assert blas.endswith("/openblas-openmp/libblas.so.3\n") or "/openblas-openmp/libopenblasp" in blas


def test_the_first_install_puts_the_shipped_conf_in_force(installed: Machine) -> None:
    """After `apt install` everything is ready for the first `systemctl start`."""
    assert active(installed, "torchpard.service") == "active"
    assert active(installed, "torchpar.target") == "active"
    assert installed.run("systemctl", "is-enabled", "torchpar.target", "torchpard.service").stdout == "enabled\n" * 2
    assert installed.run("torchpar", "check", check=False).returncode == 0
    assert "torchpar-train@demo.service.d" in installed.run("ls", "/run/systemd/generator").stdout
    assert installed.run("ls", "/etc/torchpar.conf.d").stdout == "", "the shipped conf names it, and it is there"
    assert installed.run("systemctl", "--failed", "--no-legend").stdout == ""


def test_the_version_is_the_packages(installed: Machine) -> None:
    """The program and dpkg name the same one."""
    package = installed.run("dpkg-query", "-W", "-f", "${Version}", "torchpar").stdout
    assert installed.run("torchpar", "--version").stdout.split()[-1] == package


def test_an_upgrade_leaves_jobs_alone(installed: Machine) -> None:
    """The running job keeps its PID, the one that has ended is not started again; torchpard is the new one."""
    pid = start_jobs(installed)
    daemon = installed.show("torchpard.service", "MainPID")
    ended = installed.show("torchpar-train@done", "InactiveEnterTimestampMonotonic")
    # As older versions made it: above the store.
    installed.sh(r"sed -i '/^torchpar:/s,:/nonexistent:,:/var/lib/torchpar:,' /etc/passwd")
    assert ":/var/lib/torchpar:" in installed.run("getent", "passwd", "torchpar").stdout
    upgrade(installed, "999")
    assert ":/nonexistent:" in installed.run("getent", "passwd", "torchpar").stdout
    assert installed.show("torchpar-train@waiting", "MainPID") == pid
    assert installed.show("torchpar-train@done", "InactiveEnterTimestampMonotonic") == ended
    assert installed.show("torchpard.service", "MainPID") not in (daemon, "0")
    assert active(installed, "torchpar.target") == "active"


def test_an_upgrade_keeps_the_admins_conf(installed: Machine) -> None:
    """An untouched conffile is replaced without a question; an edited one stays when dpkg is told so."""
    upgrade(installed, "998")
    assert "# of version 998" in installed.read("/etc/torchpar.conf")
    installed.write("/etc/torchpar.conf", "[Host]\nReserveCores=0\n")
    installed.sh("echo 'DPkg::Options { \"--force-confold\"; };' >/etc/apt/apt.conf.d/95keep")
    upgrade(installed, "999")
    assert installed.read("/etc/torchpar.conf") == "[Host]\nReserveCores=0\n"
    installed.run("rm", "/etc/apt/apt.conf.d/95keep")


def test_remove_stops_the_jobs_and_keeps_what_they_made(installed: Machine) -> None:
    """Also when the target is not active, so that nothing stops them on the way."""
    pid = start_jobs(installed)
    installed.sh("echo model >/var/lib/torchpar/train/waiting/model.pt")
    installed.run("systemctl", "kill", "--signal=SIGCONT", "torchpar-train@waiting")
    metrics = "/var/lib/prometheus/node-exporter/torchpar.prom"
    installed.sh(f"mkdir -p $(dirname {metrics}); touch {metrics}")
    installed.run("apt-get", "remove", "--yes", "torchpar")
    assert not installed.exists(f"/proc/{pid}") and not installed.exists(metrics)
    assert installed.run("systemctl", "list-units", "--state=active,failed", "--no-legend", "torchpar*").stdout == ""
    assert installed.read("/var/lib/torchpar/train/waiting/model.pt") == "model\n"
    assert "torchpar" not in installed.run("ls", "/run/systemd/generator").stdout


def test_purge_leaves_nothing(clean: Machine) -> None:
    """No file, link or data that the package, its programs or its jobs made; what the admin made stays."""
    before = files(clean)
    clean.install("/var/tmp/torchpar.deb", recommends=False)
    start_jobs(clean)
    clean.run("systemctl", "enable", "torchpar-train@waiting")
    clean.run("torchpar", "status", check=False)
    clean.run("torchpar", "verify", check=False)
    clean.run("apt-get", "purge", "--yes", "torchpar")
    assert files(clean) - before == {"/etc/torchpar.conf.d", "/etc/torchpar.conf.d/50-jobs.conf"}
    assert before - files(clean) == set()
    # The account stays, and nobody can log in with it: its number is not given to another.
    assert clean.run("getent", "passwd", "torchpar").stdout.strip().endswith("/usr/sbin/nologin")
    assert clean.run("getent", "shadow", "torchpar").stdout.split(":")[1].startswith("!")


def test_it_can_be_installed_again(installed: Machine) -> None:
    """After a removal with the conf kept, and after a purge."""
    for verb in ("remove", "purge"):
        installed.run("apt-get", verb, "--yes", "torchpar")
        installed.install("/var/tmp/torchpar.deb", recommends=False)
        assert active(installed, "torchpard.service") == "active"
        assert installed.run("torchpar", "check", check=False).returncode == 0


def test_a_broken_conf_does_not_fail_the_installation(clean: Machine) -> None:
    """dpkg ends well, the mistake is said with file and line, and mending it is enough."""
    clean.write("/etc/torchpar.conf.d/50-jobs.conf", "[Train x]\nScript=relative.py\n")
    result = clean.run("apt-get", "install", "--yes", "--no-install-recommends", "/var/tmp/torchpar.deb")
    # apt shows on its stdout what the package's scripts say on their stderr.
    said = result.stdout + result.stderr
    assert "/etc/torchpar.conf.d/50-jobs.conf:2:" in said
    assert "torchpar validate && torchpar apply" in said
    assert clean.run("dpkg-query", "-W", "-f", "${db:Status-Status}", "torchpar").stdout == "installed"
    assert active(clean, "torchpard.service") == "active"
    clean.write("/etc/torchpar.conf.d/50-jobs.conf", JOBS)
    clean.run("torchpar", "apply")
    assert clean.run("torchpar", "check", check=False).returncode == 0


def test_an_upgrade_with_a_broken_conf_keeps_what_was_in_force(installed: Machine) -> None:
    """A running job keeps its PID and its unit keeps its settings."""
    pid = start_jobs(installed)
    unit = installed.run("systemctl", "cat", "torchpar-train@waiting").stdout
    installed.write("/etc/torchpar.conf.d/50-jobs.conf", JOBS + "Threads=none\n")
    upgrade(installed, "999")
    assert installed.show("torchpar-train@waiting", "MainPID") == pid
    assert installed.run("systemctl", "cat", "torchpar-train@waiting").stdout == unit


def test_a_policy_against_starting_services_is_respected(clean: Machine) -> None:
    """policy-rc.d that says 101 is how image builders and admins forbid it."""
    clean.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    clean.install("/var/tmp/torchpar.deb", recommends=False)
    assert active(clean, "torchpard.service") == "inactive"
    assert active(clean, "torchpar.target") == "inactive"


def test_it_installs_where_systemd_does_not_run(clean: Machine) -> None:
    """In a chroot or an image build: no error, no attempt to talk to systemd, and it purges there too."""
    # What a program looks at to know (sd_booted(3)), and the bus by which it could reach systemd all the same.
    script = (
        "mount -t tmpfs none /run/systemd; mount -t tmpfs none /run/dbus;"
        " apt-get install --yes --no-install-recommends /var/tmp/torchpar.deb; apt-get purge --yes torchpar"
    )
    result = clean.run("unshare", "--mount", "sh", "-euc", script)
    assert "torchpar:" not in result.stderr
    assert "booted with systemd" not in result.stdout + result.stderr
    assert not clean.exists("/var/lib/torchpar")
