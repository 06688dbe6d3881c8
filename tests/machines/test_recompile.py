"""A host that is not what the active generation was made for, and a store that is damaged: no job runs misplaced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, SCRIPT, TRAIN, apply, generation, held_cpus, torchpar

TWO = "[Train a]\nScript=/srv/job.py\nEnabled=yes\n[Train b]\nScript=/srv/job.py\nEnabled=yes\nCPUs=1-1\n"


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with two services; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/job.py", SCRIPT)
    apply(machine, TWO)
    yield machine
    machine.pretend_cpus(None)
    machine.sh("systemctl stop 'torchpar-train@*'; systemctl reset-failed; systemctl daemon-reload")
    apply(machine, shipped)


def test_a_host_that_lost_a_cpu_places_its_jobs_anew_before_they_start(host: Machine) -> None:
    """At a reload: the job that fits runs on what is there, the one that does not says why; both are right again
    when the CPU is back."""
    host.pretend_cpus("0")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", TRAIN.format("a"))
    assert held_cpus(host, "a") == "0"
    done = host.run("systemctl", "start", TRAIN.format("b"), check=False)
    assert done.returncode == 1
    assert "[Train b] CPUs=1: " in host.journal(TRAIN.format("b"))
    host.pretend_cpus(None)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", TRAIN.format("b"))
    assert held_cpus(host, "b") == "1"


def test_a_conf_in_force_that_a_newer_torchpar_refuses_stays_in_force(host: Machine) -> None:
    """After an upgrade; a host that is then another one gets a placement, and what is not understood is passed over."""
    host.sh(
        "cd /var/lib/torchpar/active; for conf in conf/*; do echo Hereafter=1 >>$conf; done;"
        "sha256sum $(cut -c67- sha256sums) >/run/sums; cat /run/sums >sha256sums; echo Hereafter=1 >>$1",
        CONF,
    )
    before = generation(host)
    status, _, errors = torchpar(host, "apply")
    assert (status, generation(host)) == (78, before) and "Hereafter=1: unknown key" in errors
    host.run("dpkg-reconfigure", "torchpar")
    host.run("systemctl", "restart", TRAIN.format("a"))
    assert (generation(host), held_cpus(host, "a")) == (before, "0")
    status, _, errors = torchpar(host, "apply", "--boot")
    # With the warning, which is in the plan, it is another generation.
    assert status == 0 and "Hereafter=1: unknown key; it is passed over" in errors
    before = generation(host)
    host.pretend_cpus("0")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", TRAIN.format("a"))
    assert generation(host) != before and held_cpus(host, "a") == "0"


def test_a_host_that_boots_with_other_cpus_starts_its_jobs_placed(host: Machine) -> None:
    """The generation is made anew before any job starts."""
    before = generation(host)
    host.pretend_cpus("0")
    host.reboot()
    host.wait_until(lambda: host.show(TRAIN.format("a"), "ActiveState") == "active", "the job starts at boot")
    assert generation(host) != before and held_cpus(host, "a") == "0"
    # It waited for the new placement.
    journal = host.journal()
    assert journal.index("Finished torchpar-recompile.service") < journal.index(f"Started {TRAIN.format('a')}")


def test_a_reboot_after_a_bad_edit_and_a_lost_cpu_uses_the_conf_as_last_applied(host: Machine) -> None:
    """Neither the edit nor its mistake counts until it is applied."""
    host.write(CONF, TWO + "[Train c]\nnonsense\n")
    host.pretend_cpus("0")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", TRAIN.format("a"))
    assert held_cpus(host, "a") == "0"
    assert torchpar(host, "check")[0] == 78


@pytest.mark.parametrize(
    "damage",
    [
        "echo CPUAffinity=0-1 >>/var/lib/torchpar/active/units/torchpar-train@a.service.d/20-torchpar.conf",
        "rm /var/lib/torchpar/active/plan.json",
        "rm /var/lib/torchpar/active",
        "rm -r /var/lib/torchpar/generations",
        ": >/var/lib/torchpar/active/sha256sums",
    ],
)
def test_a_damaged_store_is_mended_before_a_job_starts(host: Machine, damage: str) -> None:
    """The job starts where the conf puts it, and what is left of the store says so."""
    host.sh(damage)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", TRAIN.format("b"))
    assert held_cpus(host, "b") == "1"
    assert torchpar(host, "check") == (0, "", "")
    assert torchpar(host, "history")[0] == 0


def test_a_running_job_is_left_alone_by_all_of_this(host: Machine) -> None:
    """A lost CPU elsewhere, a damaged store, reloads: the process and its CPUs stay."""
    host.run("systemctl", "start", TRAIN.format("b"))
    pid = host.show(TRAIN.format("b"), "MainPID")
    host.sh("rm /var/lib/torchpar/active; systemctl daemon-reload")
    host.pretend_cpus("0-1")
    host.run("systemctl", "daemon-reload")
    assert (host.show(TRAIN.format("b"), "MainPID"), held_cpus(host, "b")) == (pid, "1")
    host.run("torchpar", "apply")
    assert (host.show(TRAIN.format("b"), "MainPID"), held_cpus(host, "b")) == (pid, "1")
