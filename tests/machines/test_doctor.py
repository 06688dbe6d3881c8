"""What doctor finds on a booted Debian, and what Prometheus gets of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.machines.machine import Machine

UNIT = "torchpar-train@sick.service"
CONF = "/etc/torchpar.conf"
TEXTFILES = "/var/lib/prometheus/node-exporter"


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with a service that waits; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/sick.py", "import time\ntime.sleep(3600)\n")
    machine.write(CONF, "[Train sick]\nScript=/srv/sick.py\n")
    machine.run("torchpar", "apply")
    yield machine
    machine.sh(f"systemctl unmask {UNIT}; systemctl stop {UNIT}; systemctl reset-failed; rm -rf {TEXTFILES}")
    machine.sh(f"rm -rf /etc/systemd/system/{UNIT}.d /srv/sick.py; systemctl disable {UNIT}", check=False)
    machine.write(CONF, shipped)
    machine.run("torchpar", "apply")


def doctor(machine: Machine, *arguments: str) -> dict[str, dict[str, Any]]:
    """The results by check."""
    done = machine.run("torchpar", "doctor", "--json", *arguments, check=False)
    return {check["check"]: check for check in json.loads(done.stdout)["checks"]}


def bad(results: dict[str, dict[str, Any]]) -> set[str]:
    """The checks that fail or warn."""
    return {name for name, check in results.items() if check["status"] in ("fail", "warn")}


def test_a_host_as_apt_leaves_it_has_no_failure(host: Machine) -> None:
    """Neither while a service runs nor before, as root and as anybody."""
    for command in (f"systemctl stop {UNIT}", f"systemctl start {UNIT}"):
        machine_wide = host.sh(command) and doctor(host)
        assert not [check for check in machine_wide.values() if check["status"] == "fail"]
    done = host.run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "torchpar", "doctor", check=False)
    assert done.returncode in (0, 3) and "only root may look into the processes of train@sick" in done.stdout


def test_what_others_have_done_to_a_unit_is_found_and_mended(host: Machine) -> None:
    """A drop-in as systemctl edit writes it, a mask, and an enablement that the conf does not know.

    A mask may be meant: --fix leaves it.
    """
    assert not bad(doctor(host, "--only", "unit,sec.mdwe"))
    host.sh(f"mkdir -p /etc/systemd/system/{UNIT}.d; systemctl enable {UNIT}")
    override = "[Service]\nCPUAffinity=0\nMemoryDenyWriteExecute=yes\n"
    host.write(f"/etc/systemd/system/{UNIT}.d/override.conf", override)
    host.run("systemctl", "daemon-reload")
    assert bad(doctor(host, "--only", "unit,sec.mdwe")) == {"unit.override", "unit.enabled", "sec.mdwe"}
    host.sh(f"rm -r /etc/systemd/system/{UNIT}.d; systemctl disable {UNIT}; systemctl mask {UNIT}")
    host.run("systemctl", "daemon-reload")
    assert bad(doctor(host, "--only", "unit,sec.mdwe")) == {"unit.masked"}
    host.run("torchpar", "doctor", "--only", "unit.masked", "--fix", "--yes")
    assert host.show(UNIT, "LoadState") == "masked"
    host.sh(f"systemctl unmask {UNIT}; systemctl enable torchpar-train@gone")
    assert bad(doctor(host, "--only", "unit")) == {"unit.enabled"}
    host.run("torchpar", "doctor", "--only", "unit.enabled", "--fix", "--yes")
    assert not bad(doctor(host, "--only", "unit"))


def test_node_exporter_finds_metrics_where_it_looks_for_them(host: Machine) -> None:
    """Both services write within their sandboxes, and do nothing where there is no such folder."""
    both = ("torchpar-metrics.service", "torchpar-doctor.service")
    host.run("systemctl", "start", *both)
    assert not host.exists(f"{TEXTFILES}/torchpar.prom")
    host.sh(f"mkdir -p {TEXTFILES}; systemctl start {UNIT}")
    host.run("systemctl", "start", *both)
    text = host.read(f"{TEXTFILES}/torchpar.prom")
    for line in (
        "torchpar_torchpard_up 1",
        "torchpar_config_applied 1",
        f'torchpar_unit_active{{unit="{UNIT}"}} 1',
        f'torchpar_unit_restarts_total{{unit="{UNIT}"}} 0',
        f'torchpar_unit_affinity_ok{{unit="{UNIT}"}} 1',
    ):
        assert f"\n{line}\n" in text
    assert 'torchpar_doctor_check_status{check="unit.failed"} 0' in host.read(f"{TEXTFILES}/torchpar-doctor.prom")
    assert f'\ntorchpar_graceful_stop_forced_total{{unit="{UNIT}"}} 0\n' in text
    assert not bad(doctor(host, "--only", "obs.textfile"))
    host.run("systemctl", "stop", "torchpar-metrics.timer")
    assert bad(doctor(host, "--only", "obs.textfile")) == {"obs.textfile"}
    host.run("torchpar", "doctor", "--only", "obs.textfile", "--fix", "--yes")
    assert host.show("torchpar-metrics.timer", "ActiveState") == "active"
