"""The test machines themselves: what every other test in this folder takes for granted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines.container import ENVIRONMENT
from tests.machines.machine import CommandError, Machine, MachineError
from tests.machines.roots import Suite, cache


@pytest.fixture(scope="module")
def booted(suite: Suite) -> Iterator[Machine]:
    """A machine with nothing installed."""
    with Machine(suite, "self") as machine:
        yield machine


def test_a_machine_boots_with_every_unit_running(booted: Machine) -> None:
    """A test that finds a failed unit must know that it made it fail."""
    assert booted.run("systemctl", "is-system-running").stdout == "running\n"


def test_it_is_the_release_asked_for(booted: Machine, suite: Suite) -> None:
    """systemd 252 and 257 differ in what they know."""
    assert f"VERSION_CODENAME={suite.value}\n" in booted.read("/etc/os-release")
    version = {Suite.BOOKWORM: "systemd 252 ", Suite.TRIXIE: "systemd 257 "}[suite]
    assert booted.run("systemctl", "--version").stdout.startswith(version)


def test_it_starts_without_what_the_package_must_bring(booted: Machine) -> None:
    """Else a missing dependency would go unseen."""
    assert booted.sh("command -v python3", check=False).returncode == 127
    assert not booted.exists("/usr/lib/python3/dist-packages/torch")


def test_run_returns_both_outputs_and_takes_input(booted: Machine) -> None:
    """stdout is the answer, stderr is talk: tests must see them apart."""
    result = booted.run("sh", "-c", "cat; echo talk >&2", input="answer")
    assert (result.stdout, result.stderr, result.returncode) == ("answer", "talk\n", 0)


def test_run_fails_with_the_command_and_what_it_printed(booted: Machine) -> None:
    """A failed command is the most common failed test: its message must be enough."""
    with pytest.raises(CommandError) as error:
        booted.run("sh", "-c", "echo half done; echo no room >&2; exit 3")
    assert str(error.value) == (
        "sh -c 'echo half done; echo no room >&2; exit 3': exit status 3\n"
        "-- stdout --\nhalf done\n-- stderr --\nno room"
    )


def test_run_returns_a_failure_that_is_expected(booted: Machine) -> None:
    """With check=False the exit status is the test's business."""
    assert booted.run("sh", "-c", "exit 78", check=False).returncode == 78


def test_run_ends_a_command_that_does_not(booted: Machine) -> None:
    """Also one that holds its pipes open, and it is gone in the machine too."""
    with pytest.raises(CommandError, match="still running after 0.2 s"):
        booted.run("sh", "-c", "sleep 4321 & sleep 4321", timeout=0.2)
    sleeping = 'for file in /proc/[0-9]*/cmdline; do tr "\\0" " " <"$file"; done | grep "^sleep 4321"'
    booted.wait_until(lambda: booted.sh(sleeping, check=False).returncode == 1, "the end of both")


def test_nothing_of_this_environment_is_in_the_machine(booted: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable such as OPENBLAS_CORETYPE would change what is measured."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    lines = booted.run("env", env={"ASKED": "yes"}).stdout.splitlines()
    # PWD and OLDPWD and the like come from shells on the way.
    assert {line.partition("=")[0] for line in lines} - {"PWD", "OLDPWD", "_", "SHLVL"} == {*ENVIRONMENT, "ASKED"}
    assert "OPENBLAS" not in booted.read("/proc/1/environ")


def test_a_command_is_where_a_login_shell_would_be(booted: Machine) -> None:
    """A program that reads its own control group must find one of this machine."""
    assert "0::/user.slice/tests.scope\n" in booted.read("/proc/self/cgroup")


def test_files_go_there_and_back(booted: Machine, tmp_path: Path) -> None:
    """Text with its mode, and bytes that are not text."""
    booted.write("/srv/new/conf", "a\nb", 0o640)
    assert booted.read("/srv/new/conf") == "a\nb"
    assert booted.run("stat", "-c", "%a", "/srv/new/conf").stdout == "640\n"
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    booted.push(tmp_path / "bytes", "/srv/bytes")
    digest = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"
    assert booted.run("sha256sum", "/srv/bytes").stdout.split()[0] == digest
    booted.sh("ln -s nowhere /srv/dangling")
    assert [booted.exists(path) for path in ("/srv/bytes", "/srv/dangling", "/srv/none")] == [True, True, False]


def test_units_run_and_are_in_the_journal(booted: Machine) -> None:
    """What makes it more than a chroot."""
    booted.run("systemd-run", "--wait", "--unit=hello", "echo", "from a unit")
    assert booted.show("hello.service", "LoadState") in ("loaded", "not-found")
    booted.wait_until(lambda: "from a unit" in booted.journal("hello"), "the line in the journal")


def test_waiting_in_vain_shows_the_journal(booted: Machine) -> None:
    """The reason is there more often than not."""
    booted.sh("echo the reason >/dev/kmsg || true; systemd-cat echo the reason")
    booted.wait_until(lambda: "the reason" in booted.journal(), "the line in the journal")
    with pytest.raises(MachineError, match=r"not within 0.2 s: a wonder\n-- journal --\n(.*\n)*.*the reason"):
        booted.wait_until(lambda: False, "a wonder", timeout=0.2)


def test_a_reboot_keeps_files_and_ends_processes(booted: Machine) -> None:
    """It must be what a host's reboot is: the disk stays, /run and all processes do not."""
    first = booted.read("/proc/sys/kernel/random/boot_id")
    booted.write("/srv/kept", "text")
    booted.write("/run/not-kept", "text")
    booted.run("systemctl", "start", booted.sh("systemd-run --unit=long sleep infinity; echo long").stdout.strip())
    booted.reboot()
    assert booted.run("systemctl", "is-system-running").stdout == "running\n"
    assert booted.read("/proc/sys/kernel/random/boot_id") != first
    assert booted.read("/srv/kept") == "text"
    assert not booted.exists("/run/not-kept")
    assert booted.run("systemctl", "is-active", "long", check=False).stdout == "inactive\n"


def test_pretended_cpus_are_seen_by_units_and_at_the_next_boot(booted: Machine) -> None:
    """A host's CPU count can change while it runs, or between two boots: before generators run, too."""
    online = "/sys/devices/system/cpu/online"
    truth = booted.read(online)
    booted.write(
        "/etc/systemd/system-generators/look", f"#!/bin/sh\ncat {online} >/run/seen-by-generator 2>&1\n", 0o755
    )
    booted.pretend_cpus("0,5")
    unit = ["systemd-run", "--pipe", "--wait", "--quiet", "-pProtectKernelTunables=yes", "-pProtectSystem=strict"]
    assert booted.run(*unit, "cat", online).stdout == "0,5\n"
    booted.run("systemctl", "daemon-reload")
    booted.reboot()
    assert booted.read(online) == "0,5\n"
    assert booted.sh("cat /run/seen-by-generator").stdout == "0,5\n"
    booted.pretend_cpus(None)
    assert booted.read(online) == truth


def test_a_full_disk_fails_writes_and_keeps_what_was_there(booted: Machine) -> None:
    """ENOSPC as a program meets it, and then the folder as before."""
    booted.write("/srv/store/kept", "text")
    with booted.full_disk("/srv/store"):
        assert booted.read("/srv/store/kept") == "text"
        result = booted.run("dd", "if=/dev/zero", "of=/srv/store/new", "bs=1", "count=1", check=False)
        assert result.returncode == 1
        assert "No space left on device" in result.stderr
    assert booted.sh("ls -A /srv/store").stdout == "kept\n"


def test_two_machines_do_not_see_each_other(booted: Machine, suite: Suite) -> None:
    """Neither files nor units: each has its own disk and its own control groups."""
    with Machine(suite, "other") as other:
        other.write("/srv/of-the-other", "text")
        other.run("systemd-run", "--unit=of-the-other", "sleep", "infinity")
        assert not booted.exists("/srv/of-the-other")
        assert booted.run("systemctl", "is-active", "of-the-other", check=False).stdout == "inactive\n"
        assert "of-the-other" not in booted.sh("find /sys/fs/cgroup -type d").stdout
        assert "of-the-other.service" in other.sh("find /sys/fs/cgroup -type d").stdout


def test_nothing_is_left_behind(suite: Suite) -> None:
    """No process, mount, folder or control group, also when the test in it failed."""
    with pytest.raises(KeyboardInterrupt), Machine(suite, "leaving") as machine:
        leader, folder = machine.leader, next((cache() / "machines").glob(f"{suite.value}-leaving-*"))
        assert f"{folder.name}" in Path(f"/proc/{leader}/cgroup").read_text()
        machine.start("sleep", "infinity")
        raise KeyboardInterrupt
    assert not Path(f"/proc/{leader}").exists()
    assert not folder.exists()
    assert folder.name not in Path("/proc/mounts").read_text()
    for hierarchy, _, _ in os.walk("/sys/fs/cgroup"):
        assert folder.name not in hierarchy
