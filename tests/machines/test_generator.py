"""torchpar-generator and torchpar-recompile.service on systemd: boots without a usable store, and jobs that run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, SCRIPT, TRAIN, apply, generation, held_cpus

STORE = "/var/lib/torchpar"
RECOMPILE = "torchpar-recompile.service"

ONE = "[Train a]\nScript=/srv/job.py\nEnabled=yes\nCPUs=1-1\nMemoryMax=1G\n"
BROKEN = "[Train a]\nScript=/srv/job.py\nEnabled=perhaps\n"


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with one enabled job in force; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/job.py", SCRIPT)
    apply(machine, ONE)
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*'; systemctl reset-failed")
    apply(machine, shipped)
    machine.run("systemctl", "start", "torchpar.target")


def await_running(host: Machine) -> None:
    host.wait_until(lambda: host.show(TRAIN.format("a"), "ActiveState") == "active", "the job runs")


def test_the_first_boot_of_an_image_starts_its_jobs_placed(host: Machine) -> None:
    """Where the package was installed without a running systemd nothing has ever been applied: the boot does it, and
    the next boot has nothing to do."""
    host.run("rm", "-r", f"{STORE}/active", f"{STORE}/generations")
    host.reboot()
    await_running(host)
    assert held_cpus(host, "a") == "1"
    assert host.run("systemctl", "is-system-running", check=False).stdout == "running\n"
    host.reboot()
    await_running(host)
    assert host.show(RECOMPILE, "InactiveExitTimestampMonotonic") == "0"


def test_a_store_on_a_file_system_of_its_own_is_used_once_it_is_mounted(host: Machine) -> None:
    """When the generators run at boot, only the root file system is there."""
    before = generation(host)
    host.sh(
        "systemctl stop torchpar-train@a; cp /etc/fstab /etc/fstab.kept; mv $1 /srv/store; mkdir $1;"
        ' echo "/srv/store $1 none bind 0 0" >>/etc/fstab',
        STORE,
    )
    try:
        host.reboot()
        await_running(host)
        assert (generation(host), held_cpus(host, "a")) == (before, "1")
        assert host.show(RECOMPILE, "Result") == "success"
    finally:
        # torchpard may be reading there, and so would keep it mounted.
        host.sh(
            "systemctl stop torchpard torchpar-train@a; mv /etc/fstab.kept /etc/fstab; umount $1; rmdir $1;"
            " mv /srv/store $1; systemctl daemon-reload; systemctl start torchpard",
            STORE,
        )


def test_a_host_that_cannot_be_placed_boots_and_its_jobs_say_why(host: Machine) -> None:
    """Neither the store nor the conf can be used: the boot does not wait, the job does not start anywhere, and starts
    by itself once the conf is mended."""
    host.sh('echo >>"$1/active/plan.json"', STORE)
    host.write(CONF, BROKEN)
    host.reboot()
    host.wait_until(lambda: host.show("multi-user.target", "ActiveState") == "active", "the boot ends")
    assert host.show(TRAIN.format("a"), "MainPID") == "0"
    host.wait_until(lambda: f"{CONF}:3: [Train a] Enabled=perhaps" in host.journal(), "the conf is refused")
    journal = host.journal()
    assert f"no placement for this host: the generation in force in {STORE} is damaged; see: systemctl" in journal
    # It is tried again, too rarely to meet the start limit: 5 times in 5 minutes are less than 10.
    host.wait_until(lambda: host.show(TRAIN.format("a"), "SubState") == "auto-restart", "it waits for its next try")
    limits = [host.show(TRAIN.format("a"), name) for name in ("RestartUSec", "StartLimitIntervalUSec")]
    assert limits == ["1min", "5min"] and host.show(TRAIN.format("a"), "StartLimitBurst") == "10"
    apply(host, ONE)
    host.run("systemctl", "start", TRAIN.format("a"))
    assert held_cpus(host, "a") == "1"


@pytest.mark.parametrize(
    "damage", ["echo >>plan.json", "rm sha256sums", "echo Nonsense >>units/torchpar-train@a.service.d/20-torchpar.conf"]
)
def test_a_job_that_runs_keeps_its_limits_when_the_store_is_damaged(host: Machine, damage: str) -> None:
    """A daemon-reload, which any package may ask for, gives systemd what is in the unit at that moment."""
    host.run("systemctl", "start", TRAIN.format("a"))
    properties = ("MainPID", "AllowedCPUs", "MemoryMax", "Restart", "TimeoutStopUSec", "LimitNOFILE")
    before = [host.show(TRAIN.format("a"), name) for name in properties]
    host.sh('cd "$1/active"; eval "$2"; systemctl daemon-reload', STORE, damage)
    assert RECOMPILE in host.show(TRAIN.format("a"), "Wants")
    assert [host.show(TRAIN.format("a"), name) for name in properties] == before


def test_a_new_placement_does_not_start_what_has_come_to_its_end(host: Machine) -> None:
    """Of the enabled jobs only the one that was asked for is started, also when it needs a new placement first."""
    apply(host, ONE + "[Train done]\nScript=/srv/done.py\nEnabled=yes\nCPUs=shared\n")
    host.write("/srv/done.py", "print('done')\n")
    host.run("systemctl", "start", "--wait", TRAIN.format("done"))
    started = host.journal().count(f"Started {TRAIN.format('done')}")
    host.sh('rm "$1/active"; systemctl daemon-reload', STORE)
    host.run("systemctl", "start", TRAIN.format("a"))
    assert host.show(RECOMPILE, "Result") == "success" and held_cpus(host, "a") == "1"
    assert host.run("systemctl", "list-jobs", "--no-legend").stdout == ""
    assert host.journal().count(f"Started {TRAIN.format('done')}") == started > 0


def test_reloads_with_a_host_that_does_not_fit_do_not_loop(host: Machine) -> None:
    """A daemon-reload by itself makes no new generation; the next start of a job makes one."""
    before = generation(host)
    host.pretend_cpus("0-5")
    try:
        for _ in range(3):
            host.run("systemctl", "daemon-reload")
        assert generation(host) == before
        host.run("systemctl", "start", TRAIN.format("a"))
        made = generation(host)
        for _ in range(3):
            host.run("systemctl", "daemon-reload")
            host.run("systemctl", "restart", TRAIN.format("a"))
        assert made != before and generation(host) == made
    finally:
        host.pretend_cpus(None)
