"""From the conf to placed services, and what every kind of bad input does to them, on a booted Debian."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine

CONF = "/etc/torchpar.conf"
TRAIN = "torchpar-train@{}.service"

# A job without torch: it says where it runs, and waits.
SCRIPT = """\
import os, time
print("CPUs", sorted(os.sched_getaffinity(0)), "threads", os.environ["OMP_NUM_THREADS"], flush=True)
time.sleep(3600)
"""

TWO = "[Train a]\nScript=/srv/job.py\nEnabled=yes\n[Train b]\nScript=/srv/job.py\nEnabled=yes\n"


def torchpar(machine: Machine, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a torchpar command."""
    done = machine.run("torchpar", *arguments, check=False)
    return done.returncode, done.stdout, done.stderr


def apply(machine: Machine, conf: str) -> None:
    """Write the conf and put it in force."""
    machine.write(CONF, conf)
    machine.run("torchpar", "apply", "--afresh")


def generation(machine: Machine) -> str:
    """The generation in force."""
    return machine.run("readlink", "/var/lib/torchpar/active").stdout.strip()


def held_cpus(machine: Machine, name: str) -> str:
    """The CPUs that the main process of a training service may use, by the kernel."""
    pid = machine.show(TRAIN.format(name), "MainPID")
    return machine.sh('sed -n "s/^Cpus_allowed_list:[[:space:]]*//p" /proc/$1/status', pid).stdout.strip()


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with a job's script; afterwards its conf and its services are as they were."""
    shipped = machine.read(CONF)
    machine.write("/srv/job.py", SCRIPT)
    yield machine
    machine.sh("systemctl stop 'torchpar-train@*' 'torchpar-infer@*'; systemctl reset-failed")
    apply(machine, shipped)


def test_two_services_share_the_host_without_sharing_a_core(host: Machine) -> None:
    """Each on its own CPU from the first instruction, and both start at boot."""
    apply(host, TWO)
    host.run("systemctl", "start", TRAIN.format("a"), TRAIN.format("b"))
    assert {held_cpus(host, "a"), held_cpus(host, "b")} == {"0", "1"}
    for name in ("a", "b"):
        host.wait_until(lambda name=name: "threads 1" in host.journal(TRAIN.format(name)), "the job's first line")
    wants = host.run("systemctl", "show", "--property=Wants", "--value", "torchpar.target").stdout
    assert TRAIN.format("a") in wants and TRAIN.format("b") in wants


def test_an_undeclared_service_fails_at_once_and_says_why(host: Machine) -> None:
    """`systemctl start` itself fails, and the journal has the reason and what to do."""
    done = host.run("systemctl", "start", TRAIN.format("nosuch"), check=False)
    assert done.returncode == 1
    assert "no [Train nosuch] in torchpar.conf" in host.journal(TRAIN.format("nosuch"))
    assert host.show(TRAIN.format("nosuch"), "NRestarts") == "0"


def test_an_edit_is_in_force_after_diff_reload_and_restart(host: Machine) -> None:
    """The way that README teaches."""
    apply(host, TWO)
    host.run("systemctl", "start", TRAIN.format("a"))
    before = host.show(TRAIN.format("a"), "MainPID")
    host.write(CONF, TWO + "[Train b]\nEnabled=no\nCPUs=shared\n")
    status, diff, _ = torchpar(host, "diff")
    assert status == 2 and "+CPUAffinity=0-1" in diff and f"{TRAIN.format('a')} is running" in diff
    assert torchpar(host, "check")[0] == 2
    host.run("systemctl", "reload", "torchpard")
    assert host.show(TRAIN.format("a"), "MainPID") == before and held_cpus(host, "a") == "0"
    assert torchpar(host, "check") == (0, "", "")
    host.run("systemctl", "restart", TRAIN.format("a"))
    assert held_cpus(host, "a") == "0-1"


def test_a_broken_conf_changes_nothing_and_a_reboot_starts_what_was_applied(host: Machine) -> None:
    """A typo can neither stop nor unpin a job."""
    apply(host, TWO)
    host.run("systemctl", "start", TRAIN.format("a"))
    pid, active = host.show(TRAIN.format("a"), "MainPID"), generation(host)
    host.write(CONF, TWO.replace("[Train a]", "[Trian a]") + "[Train c]\nThreads=many\nScript=c.py\n")
    done = host.run("systemctl", "reload", "torchpard", check=False)
    journal = host.journal("torchpard.service")
    assert done.returncode != 0
    assert "unknown section [Trian a]; did you mean Train?" in journal
    assert "/etc/torchpar.conf:8: [Train c] Threads=many" in journal and "/etc/torchpar.conf:9" in journal
    assert host.show("torchpard.service", "ActiveState") == "active"
    assert (host.show(TRAIN.format("a"), "MainPID"), generation(host)) == (pid, active)
    host.run("systemctl", "daemon-reload")
    host.reboot()
    host.wait_until(lambda: host.show(TRAIN.format("a"), "ActiveState") == "active", "the job starts at boot")
    assert held_cpus(host, "a") in ("0", "1") and generation(host) == active


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("[Train a]\nScript=/srv/job.py\nCPUs=0-7\n", "CPUs=0-7: this host has no CPU 2-7 (online: 0-1)"),
        ("[Train a]\nScript=/srv/job.py\nCPUs=3\nEnabled=yes\n", "asks for 3 cores, but 2 of the 2 usable cores"),
        ("[Train a]\nScript=/srv/job.py\nRanks=3\n", "Ranks=3: it has 2 cores (0-1)"),
        ("[Train a]\nScript=/srv/job.py\nNUMAMask=5\n", "NUMAMask=5: node 5 is not there"),
        ("[Train a]\nScript=/srv/job.py\nGPUs=1\n", "GPUs=1: of the 0 accelerators of this host 0 are free"),
        (
            "[Train a]\nScript=/srv/job.py\nService.LimitNOFILE=lots\n",
            "/etc/torchpar.conf:3: [Train a] Service.LimitNOFILE=lots: systemd says: ",
        ),
        ("[Train a]\nScript=/srv/job.py\nService.Nice=77\n", ":3: [Train a] Service.Nice=77: systemd says: "),
        (
            "[Train]\nService.RestrictAddressFamilies=AF_NONE\n[Train a]\nScript=/srv/job.py\n",
            "/etc/torchpar.conf:2: [Train a] Service.RestrictAddressFamilies=AF_NONE: systemd says: ",
        ),
        ("[Train]\nx\n", "/etc/torchpar.conf:2: 'x' is neither"),
    ],
)
def test_a_conf_that_cannot_be_is_refused_and_changes_nothing(host: Machine, conf: str, message: str) -> None:
    """One message that names the key and the fact, exit status 78, the generation as it was; validate says the same."""
    apply(host, TWO)
    active = generation(host)
    host.write(CONF, conf)
    status, _, errors = torchpar(host, "apply")
    assert status == 78 and message in errors and "Traceback" not in errors
    status, _, errors = torchpar(host, "validate")
    assert status == 78 and message in errors and "nothing has changed" not in errors
    assert generation(host) == active
    assert "CPUAffinity=0\n" in host.run("systemctl", "cat", TRAIN.format("a")).stdout


def test_a_conf_that_others_can_write_or_nobody_can_read_is_refused(host: Machine) -> None:
    """Whoever writes the conf decides what runs as whom."""
    apply(host, TWO)
    active = generation(host)
    host.run("chmod", "666", CONF)
    status, _, errors = torchpar(host, "apply")
    assert status == 78 and "can be written by others than root; chmod go-w /etc/torchpar.conf" in errors
    host.sh("chmod 644 $1; chown daemon $1", CONF)
    status, _, errors = torchpar(host, "apply")
    assert status == 78 and "does not belong to root" in errors
    host.sh("chown root $1; rm $1; mkdir $1", CONF)
    status, _, errors = torchpar(host, "apply")
    host.sh("rmdir $1; : >$1", CONF)
    assert status == 78 and "/etc/torchpar.conf: is a folder" in errors
    assert generation(host) == active


def test_a_user_who_is_not_root_is_told_to_become_it(host: Machine) -> None:
    """And may look at everything that changes nothing."""
    as_daemon = ("setpriv", "--reuid=daemon", "--clear-groups", "torchpar")
    done = host.run(*as_daemon, "apply", check=False)
    assert done.returncode == 77 and "needs root; try: sudo torchpar apply" in done.stderr
    assert "SERVICE" in host.run(*as_daemon, "plan").stdout
    assert host.run(*as_daemon, "check", check=False).returncode == 0


def test_a_missing_script_or_interpreter_is_said_before_and_at_the_start(host: Machine) -> None:
    """A warning with file and line from apply, a clear line in the journal, and no restart loop."""
    conf = "[Train a]\nScript=/srv/none.py\n[Train b]\nScript=/srv/job.py\nPython=/srv/venv/bin/python3\n"
    host.write(CONF, conf)
    status, _, errors = torchpar(host, "apply")
    assert status == 0
    assert "/etc/torchpar.conf:2: [Train a] Script=/srv/none.py: no such file on this host" in errors
    assert "/etc/torchpar.conf:5: [Train b] Python=/srv/venv/bin/python3: no such program on this host" in errors
    host.run("systemctl", "start", TRAIN.format("a"), check=False)
    host.wait_until(lambda: host.show(TRAIN.format("a"), "ActiveState") == "failed", "the job without a script fails")
    assert "/srv/none.py: no such file; set Script= in [Train a] of torchpar.conf" in host.journal(TRAIN.format("a"))
    assert host.show(TRAIN.format("a"), "ExecMainStatus") == "78"
    assert host.run("systemctl", "start", TRAIN.format("b"), check=False).returncode == 1
    assert "/srv/venv/bin/python3" in host.journal(TRAIN.format("b"))
    for name in ("a", "b"):
        assert host.show(TRAIN.format(name), "NRestarts") == "0"


def test_units_of_others_are_warned_of(host: Machine) -> None:
    """A key that systemd does not know in the mount of the job's files, a program that is not there, a bad value."""
    mount = "/etc/systemd/system/srv-data.mount"
    host.write(mount, "[Mount]\nWhat=/dev/null\nWhere=/srv/data\nFoo=1\n")
    try:
        host.write(CONF, "[Train a]\nScript=/srv/data/x.py\n")
        status, _, errors = torchpar(host, "apply")
        assert status == 0 and "srv-data.mount:4: " in errors and "Foo" in errors
        host.write(CONF, "[Train a]\nScript=/srv/data/x.py\nService.Nice=abc\n")
        status, _, errors = torchpar(host, "apply")
        assert status == 78 and "/etc/torchpar.conf:3: [Train a] Service.Nice=abc: systemd says: " in errors
    finally:
        host.run("rm", mount)


def test_four_thousand_words_arrive_and_are_not_printed_on_the_terminal(host: Machine) -> None:
    """260 KiB in one line of the conf and in many; what no kernel takes is refused with its line."""
    words = [f"/data/shards/part-{number:06d}-of-004000.tar.zst.parquet.of.the.year" for number in range(4000)]
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()
    script = "import hashlib, sys\nprint(hashlib.sha256('\\0'.join(sys.argv[1:]).encode()).hexdigest(), flush=True)\n"
    host.write("/srv/words.py", script)
    head = "Script=/srv/words.py\nArguments="
    host.write(CONF, f"[Train a]\n{head}{' '.join(words)}\n[Train b]\n{head}" + " \\\n ".join(words) + "\n")
    assert all(len(text) < 20_000 for text in (torchpar(host, "diff")[1], torchpar(host, "explain", "a")[1]))
    assert torchpar(host, "apply")[0] == 0
    for name in ("a", "b"):
        host.run("systemctl", "start", TRAIN.format(name))
        host.wait_until(lambda name=name: digest in host.journal(TRAIN.format(name)), "all words arrive")
    assert len(torchpar(host, "status")[1]) < 20_000
    active = generation(host)
    host.write(CONF, f"[Train a]\nScript=/srv/words.py\nEnvironment=CONFIG={'x' * 131_072}\n")
    status, _, errors = torchpar(host, "apply")
    assert status == 78 and "/etc/torchpar.conf:3: [Train a] Environment=: 'CONFIG=x" in errors and len(errors) < 500
    assert generation(host) == active


def test_a_full_disk_changes_nothing_and_leaves_nothing_behind(host: Machine) -> None:
    """The old generation stays in force; the message says where and what to do."""
    apply(host, TWO)
    active = generation(host)
    with host.full_disk("/var/lib/torchpar/generations"):
        host.write(CONF, "[Train a]\nScript=/srv/job.py\n")
        status, _, errors = torchpar(host, "apply")
        assert status == 1 and "No space left on device" in errors and "nothing has changed" in errors
    assert generation(host) == active
    assert torchpar(host, "history")[0] == 0
    host.run("torchpar", "apply")
    assert generation(host) != active


def test_two_applies_at_once_do_not_meet(host: Machine) -> None:
    """The second says that it is busy, exit status 75, or comes after the first."""
    apply(host, TWO)
    first = [host.start("torchpar", "apply") for _ in range(4)]
    statuses = {process.wait() for process in first}
    for process in first:
        process.communicate()
    assert 0 in statuses and statuses <= {0, 75}


def test_a_dry_run_shows_the_change_and_makes_none(host: Machine) -> None:
    """Exit status 2 says that something would change."""
    apply(host, TWO)
    active = generation(host)
    host.write(CONF, "[Train a]\nScript=/srv/job.py\n")
    status, output, _ = torchpar(host, "apply", "--dry-run")
    assert status == 2 and "+CPUAffinity=0-1" in output and generation(host) == active


def test_apply_restarts_what_changed_when_asked(host: Machine) -> None:
    """And tells Ansible as JSON what it did."""
    apply(host, TWO)
    host.run("systemctl", "start", TRAIN.format("a"))
    before = host.show(TRAIN.format("a"), "MainPID")
    host.write(CONF, TWO + "[Train a]\nThreads=1\nWaitPolicy=passive\n")
    status, output, _ = torchpar(host, "apply", "--json", "--restart=if-changed")
    report = json.loads(output)
    assert status == 0 and report["changed"] is True
    (unit,) = report["units"]
    assert unit.pop("meaning").startswith("train@a: ")
    assert unit == {"name": TRAIN.format("a"), "change": "changed", "restart_required": False}
    assert host.show(TRAIN.format("a"), "MainPID") not in (before, "0")
    assert json.loads(torchpar(host, "apply", "--json")[1])["changed"] is False


def test_a_restart_that_fails_is_told_with_what_is_in_force(host: Machine) -> None:
    """One service may not be restarted, the other is all the same."""
    units = [TRAIN.format(name) for name in ("a", "b")]
    apply(host, TWO)
    host.run("systemctl", "start", *units)
    before = [host.show(unit, "MainPID") for unit in units]
    override = f"/run/systemd/system/{units[0]}.d/override.conf"
    host.write(override, "[Unit]\nRefuseManualStop=yes\n")
    try:
        host.write(CONF, TWO.replace("[Train b]", "[Train]\nMemoryMax=997M\n[Train b]"))
        status, output, errors = torchpar(host, "apply", "--restart=if-changed")
    finally:
        host.sh('rm "$1"; systemctl daemon-reload', override)
    assert status == 1 and output == ""
    assert f"not restarted and run with their old values: {units[0]}; again: systemctl restart {units[0]}\n" in errors
    assert errors.endswith(f"generation {generation(host).rpartition('/')[2]} is in force\n")
    assert [host.show(unit, "MainPID") == pid for unit, pid in zip(units, before, strict=True)] == [True, False]


def test_an_administrators_own_drop_in_wins_and_is_named(host: Machine) -> None:
    """`systemctl edit` is theirs; apply goes on and says so."""
    override = "/etc/systemd/system/torchpar-train@a.service.d/override.conf"
    host.write(override, "[Service]\nCPUAffinity=\nCPUAffinity=1\n")
    try:
        host.write(CONF, "[Train a]\nScript=/srv/job.py\nCPUs=0-0\n")
        status, _, errors = torchpar(host, "apply")
        assert status == 0 and f"CPUAffinity is 1, planned 0 (an override: {override})" in errors
    finally:
        host.sh('rm -r "$(dirname "$1")"', override)


def test_what_systemd_is_given_passes_its_own_check(host: Machine) -> None:
    """systemd-analyze verify prints nothing at all for any unit of the package."""
    apply(host, TWO + "[Infer web]\nModel=/srv/m.pt\n")
    units = ["torchpard.service", "torchpar.target", "torchpar.slice", "torchpar-recompile.service"]
    units += [TRAIN.format("a"), TRAIN.format("demo"), "torchpar-infer@web.service"]
    done = host.run("systemd-analyze", "verify", "--man=no", *units)
    assert done.stdout + done.stderr == ""
