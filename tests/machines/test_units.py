"""The static units: how they are hardened, how they fail, and with which rights the daemon's reload runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, apply
from torchpar.conf.directives import SINCE
from torchpar.conf.passed import PASSED

# Stands in for /usr/bin/torchpar: says with which rights it was called, and fails if it is told to.
REPORTER = """\
#!/bin/sh
{
    grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp|Seccomp_filters|Uid):' /proc/self/status
    for space in mnt net pid user uts ipc; do echo "$space: $(readlink /proc/self/ns/$space)"; done
} >/run/reload-rights
exit "$(cat /run/reload-status)"
"""

# The same of PID 1.
RIGHTS = """
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp|Seccomp_filters|Uid):' /proc/1/status
for space in mnt net pid user uts ipc; do echo "$space: $(readlink /proc/1/ns/$space)"; done
"""


@pytest.fixture
def reporting(machine: Machine) -> Iterator[Machine]:
    """The shared machine, with REPORTER as its torchpar."""
    machine.sh("mv /usr/bin/torchpar /usr/bin/torchpar.kept; echo 0 >/run/reload-status")
    machine.write("/usr/bin/torchpar", REPORTER, 0o755)
    yield machine
    machine.sh("mv /usr/bin/torchpar.kept /usr/bin/torchpar; rm -f /run/reload-*; systemctl reset-failed torchpard")


@pytest.mark.parametrize(
    ("unit", "most"),
    [("torchpard.service", 1.5), ("torchpar-train@demo.service", 1.8), ("torchpar-infer@demo.service", 1.8)],
)
def test_the_exposure_of_a_unit_is_low(machine: Machine, unit: str, most: float) -> None:
    """By systemd-analyze security; a unit without any hardening has 9.6."""
    said = machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert exposure and float(exposure[1]) <= most


def test_the_daemon_can_write_in_the_control_groups_of_services_and_in_no_others(machine: Machine) -> None:
    """It gives their groups the CPUs that they share, where there is a cpuset controller."""
    pid = machine.show("torchpard.service", "MainPID")
    looks = "for at in torchpar.slice/ system.slice/ ''; do [ -w /sys/fs/cgroup/${at}cgroup.procs ]; echo $?; done"
    said = machine.run("nsenter", f"--target={pid}", "--mount", "sh", "-c", looks).stdout
    assert said.split() == ["0", "1", "1"]


def test_the_daemon_has_three_capabilities_and_one_kind_of_socket(machine: Machine) -> None:
    """What reading other users' processes needs, and moving their threads, and no more."""
    pid = machine.show("torchpard.service", "MainPID")
    status = machine.read(f"/proc/{pid}/status")
    # CAP_DAC_READ_SEARCH is 2, CAP_SYS_PTRACE is 19 and CAP_SYS_NICE is 23, see linux/capability.h.
    assert re.findall(r"^Cap(?:Eff|Bnd):\t(\w+)$", status, re.M) == [f"{1 << 2 | 1 << 19 | 1 << 23:016x}"] * 2
    assert "NoNewPrivs:\t1\n" in status
    assert machine.show("torchpard.service", "RestrictAddressFamilies") == "AF_UNIX"


def test_the_table_of_directives_is_what_systemd_prints(machine: Machine) -> None:
    """Every name of [Service] that this systemd knows is one of the table, by its version; so is the manual's list."""
    said = machine.run("/lib/systemd/systemd", "--dump-configuration-items").stdout
    section = said.partition("[Service]\n")[2].partition("\n[")[0]
    version = int(machine.run("systemctl", "--version").stdout.split()[1])
    known = set(re.findall(r"^(\w+)=", section, re.M))
    assert known == {name for name, since in SINCE.items() if since <= version}
    # What Service.KEY= passes on is the installed page's list, and of it what this systemd has.
    page = machine.run("zcat", "/usr/share/man/man5/torchpar.conf.5.gz").stdout
    listed = page.partition("as systemd gives them to the service's user.\n")[2].partition("\n.SH ")[0]
    named = set(re.findall(r"\b([A-Z]\w+)=", listed))
    assert named == PASSED and {name for name in named if SINCE[name] <= version} <= known


def test_the_daemons_reload_has_all_rights_of_the_host(reporting: Machine) -> None:
    """The apply that it runs is no more confined than one from a shell: capabilities, system calls, namespaces."""
    reporting.run("systemctl", "reload", "torchpard")
    assert reporting.read("/run/reload-rights") == reporting.sh(RIGHTS).stdout


def test_a_reload_that_fails_leaves_the_daemon_alone(reporting: Machine) -> None:
    """`systemctl reload` fails as apply does, and the same process goes on."""
    pid = reporting.show("torchpard.service", "MainPID")
    reporting.write("/run/reload-status", "78\n")
    assert reporting.run("systemctl", "reload", "torchpard", check=False).returncode == 1
    assert reporting.show("torchpard.service", "ActiveState") == "active"
    assert reporting.show("torchpard.service", "MainPID") == pid


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        ("torchpar-train@nosuch.service", "no [Train nosuch] in torchpar.conf as last applied; see: torchpar validate"),
        ("torchpar-infer@nosuch.service", "no [Infer nosuch] in torchpar.conf as last applied; see: torchpar validate"),
        ("torchpar-infer@declared.service", "/srv/no-such-model.pt"),
    ],
)
def test_what_cannot_start_fails_at_once_and_once(machine: Machine, ports: None, unit: str, why: str) -> None:
    """`systemctl start` itself fails, `systemctl status` and the journal say why, and it is not tried again."""
    shipped = machine.read(CONF)
    apply(machine, "[Infer declared]\nModel=/srv/no-such-model.pt\n")
    try:
        assert machine.run("systemctl", "start", unit, check=False).returncode == 1
        said = machine.run("systemctl", "status", "--no-pager", "--full", unit, check=False).stdout
        assert why in said and "78" in said
        assert why in machine.journal(unit)
        assert machine.show(unit, "ActiveState") == "failed" and machine.show(unit, "Result") == "exit-code"
        assert machine.show(unit, "NRestarts") == "0"
    finally:
        # The socket outlives its service, and has the address of the next test's.
        machine.run("systemctl", "stop", "torchpar-infer@declared.socket", check=False)
        machine.run("systemctl", "reset-failed", unit, check=False)
        apply(machine, shipped)
