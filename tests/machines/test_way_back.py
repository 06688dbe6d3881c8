"""`torchpar apply --confirm-within` on a booted Debian: the way back survives whatever happens meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, SCRIPT, TRAIN, apply, generation, torchpar

UNIT = "torchpar-way-back.service"
LOCK = "/var/lib/torchpar/.lock"
LATE = f"/run/systemd/system/{UNIT}.d/late.conf"

# They fit on a host that has lost a CPU, too.
ONE = "[Train a]\nScript=/srv/job.py\nEnabled=yes\nCPUs=shared\n"
TWO = ONE + ONE.replace("[Train a]", "[Train b]")


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine with two services in force; afterwards it is as it was."""
    shipped = machine.read(CONF)
    machine.write("/srv/job.py", SCRIPT)
    apply(machine, TWO)
    yield machine
    machine.pretend_cpus(None)
    machine.sh("systemctl stop 'torchpar-train@*' $1; systemctl reset-failed; torchpar confirm || true", UNIT)
    apply(machine, shipped)


def apply_for(host: Machine, seconds: int) -> tuple[str, str]:
    """Apply another conf, to be confirmed within so many seconds; what was and what is in force."""
    before = generation(host)
    host.write(CONF, ONE)
    host.run("torchpar", "apply", "--confirm-within", str(seconds))
    assert generation(host) != before
    return before, generation(host)


def end_time(host: Machine) -> None:
    """Let the time be over, as if it had passed."""
    host.sh("sed -i 's/\"seconds\": [0-9]*/\"seconds\": 0/' /var/lib/torchpar/generations/*.unconfirmed")


def test_an_unconfirmed_apply_is_taken_back_by_itself(host: Machine) -> None:
    """Also when the shell that ran it is gone, and where an earlier way back has looked for the last time and not ended
    yet; and nothing is left of it."""
    before = generation(host)
    host.write(LATE, "[Unit]\nConditionPathExistsGlob=\n[Service]\nExecStart=\nExecStart=sleep infinity\n")
    host.sh("systemctl daemon-reload; systemctl start $1; rm $2; systemctl daemon-reload", UNIT, LATE)
    assert host.show(UNIT, "ActiveState") == "active"
    host.write(CONF, ONE)
    # On a slow host it may be taken back before this command has ended.
    host.run("torchpar", "apply", "--confirm-within", "1")
    host.wait_until(lambda: "was not confirmed in time" in host.journal(UNIT), "the apply is taken back")
    assert generation(host) == before
    last = json.loads(torchpar(host, "history", "--json")[1])[0]
    assert last["generation"] > int(before.rpartition("/")[2])
    assert last["taken_back"]["why"] == "it was not confirmed in time"
    why = rf"generation {last['generation']} was taken back at [-0-9]+ [0-9:]+: it was not confirmed in time"
    assert re.search(rf"the conf is newer than .*; {why}", torchpar(host, "status")[1])
    assert re.search(r"taken back at .*: it was not confirmed in time", torchpar(host, "history")[1])
    assert TRAIN.format("b") in host.show("torchpar.target", "Wants")
    host.wait_until(lambda: host.show(UNIT, "ActiveState") == "inactive", "the unit ends")
    assert host.sh("ls /var/lib/torchpar/generations/*.unconfirmed", check=False).returncode != 0


def test_it_is_shown_settled_by_confirm_or_rollback_and_no_other_is_applied_before(host: Machine) -> None:
    """By hand, in either way; what waits is in status and history, also as JSON."""
    before, kept = apply_for(host, 6000)
    number, back = (int(path.rpartition("/")[2]) for path in (kept, before))
    assert f"generation {back} comes back in " in torchpar(host, "status")[1]
    for words in (("status", "--json"), ("history", "--json")):
        answer = json.loads(torchpar(host, *words)[1])
        waits = answer["unconfirmed"] if words[0] == "status" else answer[0]["unconfirmed"]
        assert waits["back"] == back and 0 < waits["seconds_left"] <= 6000
    assert f" s unless confirmed, then {back}" in torchpar(host, "history")[1]
    assert torchpar(host, "apply")[0] == 0
    host.write(CONF, TWO + "[Train b]\nEnabled=no\n")
    for options in ((), ("--confirm-within", "9")):
        status, _, errors = torchpar(host, "apply", *options)
        assert status == 1 and f"generation {number} still waits for its confirmation" in errors
    assert generation(host) == kept and host.show(UNIT, "ActiveState") == "active"
    host.run("torchpar", "confirm")
    assert generation(host) == kept and torchpar(host, "confirm")[0] == 1
    assert host.show(UNIT, "ActiveState") == "inactive"
    host.run("torchpar", "apply", "--confirm-within", "6000")
    host.run("env", "SUDO_UID=5", "torchpar", "rollback")
    assert re.search(r"taken back at .*: games ran torchpar rollback", torchpar(host, "history")[1])
    assert generation(host) == kept and host.show(UNIT, "ActiveState") == "inactive"
    assert torchpar(host, "confirm")[0] == 1 and torchpar(host, "apply")[0] == 0


def test_it_holds_over_a_kill_a_reboot_another_host_and_a_busy_lock(host: Machine) -> None:
    """The process that waits is killed; the host boots with other CPUs, for which what waits is made anew, and then
    what was in force before; another command has the lock when the time is over."""
    _, new = apply_for(host, 6000)
    host.sh("kill -KILL $1", host.show(UNIT, "MainPID"))
    host.pretend_cpus("0")
    host.reboot()
    host.wait_until(lambda: generation(host) != new, "the placement is made anew")
    anew = generation(host)
    assert " s unless you run: torchpar confirm" in torchpar(host, "status")[1]
    assert host.show(UNIT, "ActiveState") == "active"
    host.run("systemd-run", "--quiet", "--unit=busy", "flock", LOCK, "sleep", "infinity")
    try:
        host.wait_until(lambda: torchpar(host, "confirm")[0] == 75, "the lock is busy")
        end_time(host)
        host.run("systemctl", "restart", UNIT)
        assert torchpar(host, "confirm")[0] == 75 and generation(host) == anew
        assert host.show(UNIT, "ActiveState") == "active"
    finally:
        host.run("systemctl", "stop", "busy")
    host.wait_until(lambda: generation(host) != anew, "it goes back")
    host.wait_until(lambda: host.show(UNIT, "ActiveState") == "inactive", "the unit ends")
    assert TRAIN.format("b") in host.show("torchpar.target", "Wants")
    assert "made for" not in torchpar(host, "status")[1]
