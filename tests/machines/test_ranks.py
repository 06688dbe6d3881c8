"""Jobs of several ranks on a booted Debian: bound each to its own, brought back when one is killed; the examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.machines.machine import Machine
from tests.machines.test_apply import CONF, TRAIN, apply

EXAMPLES = "/usr/share/torchpar/examples"


@pytest.fixture
def host(machine: Machine) -> Iterator[Machine]:
    """The shared machine; afterwards its conf and its services are as they were."""
    shipped = machine.read(CONF)
    yield machine
    machine.sh("systemctl kill --signal=KILL 'torchpar-train@*'; systemctl stop 'torchpar-train@*'")
    machine.sh("systemctl reset-failed; rm -rf /var/lib/torchpar/train/test-*")
    apply(machine, shipped)


def told_by(machine: Machine, name: str, rank: int) -> dict[str, object]:
    """What a rank has said of itself when it had imported torch; nothing before that."""
    # One command: when the service ends, its folder goes, and it may do so between a look and a read.
    path = f"/run/torchpar-jobs/torchpar-train@{name}/rank-{rank}.json"
    text = machine.sh('cat "$1" 2>/dev/null || true', path).stdout
    return dict(json.loads(text)) if text else {}


def lines(machine: Machine, name: str, pattern: str) -> list[str]:
    """All that matches in the journal of a training service."""
    return re.findall(pattern, machine.journal(TRAIN.format(name)))


def running(machine: Machine, pattern: str) -> str:
    """The processes whose command line matches; a pattern that does not match itself finds no process that seeks it."""
    return machine.sh('grep -sl "$1" /proc/[0-9]*/cmdline || true', pattern).stdout


def test_two_ranks_are_bound_and_a_killed_one_brings_both_back_from_the_checkpoint(host: Machine) -> None:
    """Own CPU and own threads for each; first torchrun starts both again, as MaxRestarts= says, then systemd."""
    kill_ranks(host, "/usr/bin/python3")


def kill_ranks(host: Machine, python: str) -> None:
    """A rank of a job of two is killed twice, and the job stopped in the end, with the torch of an interpreter."""
    apply(
        host,
        f"[Train test-ddp]\nScript={EXAMPLES}/ddp.py\nArguments=100000\nPython={python}\nRanks=2\nMaxRestarts=1\n"
        "Service.RestartSec=1s\n",
    )
    unit = TRAIN.format("test-ddp")
    services = json.loads(host.run("torchpar", "plan", "--json").stdout)["services"]
    plan = next(service for service in services if service["unit"] == unit)
    host.run("systemctl", "start", unit)
    before: set[object] = set()
    for restarts in range(3):
        ranks = host.wait_until(
            lambda before=before: (
                len(told := [told_by(host, "test-ddp", rank) for rank in (0, 1)]) == 2
                and all(told)
                and not before & {rank["pid"] for rank in told}
                and told
            ),
            "both ranks have imported torch",
        )
        for planned, rank in zip(plan["ranks"], ranks, strict=True):
            assert rank["cpus"] == planned["cpus"] and rank["threads"] == planned["threads"] == 1
            assert f"Cpus_allowed_list:\t{planned['cpus']}\n" in host.read(f"/proc/{rank['pid']}/status")
        assert {rank["cpus"] for rank in ranks} == {"0", "1"}
        saved = len(lines(host, "test-ddp", r"saved at step \d+"))
        host.wait_until(
            lambda saved=saved: len(lines(host, "test-ddp", r"saved at step \d+")) > saved, "a checkpoint"
        )
        assert len(lines(host, "test-ddp", r"rank \d goes on at step [1-9]\d*")) == 2 * restarts
        assert host.show(unit, "NRestarts") == ("1" if restarts == 2 else "0")
        if restarts < 2:
            before = {rank["pid"] for rank in ranks}
            host.sh('kill -KILL "$1"', str(ranks[1]["pid"]))

    assert "rank 1 (process " in host.journal(unit) and "was ended by SIGKILL" in host.journal(unit)
    host.run("systemctl", "stop", unit)
    assert (host.show(unit, "ActiveState"), host.show(unit, "Result")) == ("inactive", "success")


def test_the_examples_run(host: Machine) -> None:
    """Each way to train in parallel, from its file to the end."""
    run_examples(host, "/usr/bin/python3")


def run_examples(host: Machine, python: str) -> None:
    """The examples, with the torch of an interpreter."""
    ranks = {"data_parallel": 1, "model_parallel": 2, "pipeline": 2}
    apply(
        host,
        "".join(f"[Train test-{name}]\nScript={EXAMPLES}/{name}.py\nPython={python}\nRanks={n}\n"
            for name, n in ranks.items()),
    )
    for name in ranks:
        host.run("systemctl", "start", "--wait", TRAIN.format(f"test-{name}"))
        losses = lines(host, f"test-{name}", r"loss (\d+\.\d+) ")
        assert len(losses) == 1 and float(losses[0]) < 1
        assert host.show(TRAIN.format(f"test-{name}"), "Result") == "success"


# What each job is, and what its journal says of it.
BAD = {
    "gone": ("Script=/srv/no.py", "/srv/no.py: no such file; set Script= in [Train test-gone]"),
    "gone-twice": ("Script=/srv/no.py\nRanks=2", "/srv/no.py: no such file; set Script= in [Train test-gone-twice]"),
    "no-torch": (
        "Script=/srv/ends.py\nRanks=2\nPython=/srv/python-without-torch",
        "this Python cannot import torch: No module named 'torch'; set Python= in [Train test-no-torch]",
    ),
    "ends": ("Script=/srv/ends.py\nRestart=no", "Main process exited, code=exited, status=3/"),
    "no-state": ("Script=/srv/ends.py", "Changing to the requested working directory failed"),
}


def test_bad_jobs_say_what_is_wrong_and_leave_nothing(host: Machine) -> None:
    """They fail once, with a line that says why; more ranks than cores are refused before anything starts."""
    host.write("/srv/ends.py", "import sys\nsys.exit(3)\n")
    # -S: without the folder where Debian's packages are.
    host.write("/srv/python-without-torch", '#!/bin/sh\nexec /usr/bin/python3 -S "$@"\n', 0o755)
    host.write(
        "/srv/daemon.py",
        "import os, sys, time\nos.write(1, bytes(range(256)) + b'\\n')\n"
        "if os.fork() == 0:\n    os.setsid()\n    os.fork()\n    time.sleep(3600)\n",
    )
    host.write("/srv/stubborn.py", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('here', flush=True)\n"
               "time.sleep(3600)\n")  # fmt: skip
    apply(
        host,
        "".join(f"[Train test-{name}]\n{keys}\n" for name, (keys, _) in BAD.items())
        + "[Train test-daemon]\nScript=/srv/daemon.py\n"
        + "[Train test-stubborn]\nScript=/srv/stubborn.py\nCheckpointGrace=1s\n",
    )
    # As `systemctl edit` would: its working directory is not made then.
    edited = f"/etc/systemd/system/{TRAIN.format('test-no-state')}.d"
    host.write(f"{edited}/override.conf", "[Service]\nStateDirectory=\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", TRAIN.format("test-stubborn"))
    for name, (_, said) in BAD.items():
        unit = TRAIN.format(f"test-{name}")
        host.run("systemctl", "start", "--wait", unit, check=False)
        assert said in host.journal(unit)
        assert (host.show(unit, "ActiveState"), host.show(unit, "NRestarts")) == ("failed", "0")

    host.run("rm", "-r", edited)
    host.run("systemctl", "daemon-reload")

    # What a job leaves behind goes with it, and what it prints may be anything.
    host.run("systemctl", "start", "--wait", TRAIN.format("test-daemon"))
    assert host.show(TRAIN.format("test-daemon"), "Result") == "success"
    assert running(host, "/srv/[d]aemon.py") == ""

    host.wait_until(lambda: "here" in host.journal(TRAIN.format("test-stubborn")), "its first line")
    host.run("systemctl", "stop", TRAIN.format("test-stubborn"))
    assert host.show(TRAIN.format("test-stubborn"), "Result") == "signal"
    assert running(host, "/srv/[s]tubborn.py") == ""

    host.write(CONF, "[Train test-many]\nScript=/srv/ends.py\nRanks=999\n")
    refused = host.run("torchpar", "apply", check=False)
    assert refused.returncode == 78 and "each of 999 ranks needs one" in refused.stderr
