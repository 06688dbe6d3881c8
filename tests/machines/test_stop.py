"""How jobs stop on a booted Debian: nothing is cut off, and the next start goes on.

STOPS=20 in the environment stops each job so many times; usually it is done twice, and once for each kind of script.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.machines.machine import Machine
from tests.machines.stop_scripts import KINDS
from tests.machines.test_apply import TRAIN, apply
from tests.machines.test_ranks import host, lines

__all__ = ["host"]  # the fixture

STOPS = int(os.environ.get("STOPS", "2"))
STOPS_OF_A_KIND = int(os.environ.get("STOPS", "1"))

# Two ranks with loader workers that are always behind. The last save takes as long as its argument says.
SAVES = """\
import os, pathlib, sys, time
import torch, torchpar.runtime
from torch.utils.data import DataLoader, Dataset

class Slow(Dataset):
    def __len__(self):
        return 10**6
    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.ones(4)

job = torchpar.runtime.init()
model = job.wrap(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
checkpoint = pathlib.Path(os.environ["STATE_DIRECTORY"], "checkpoint.pt")
start = torch.load(checkpoint)["step"] if checkpoint.exists() else 0
for step, x in enumerate(DataLoader(Slow(), batch_size=4, num_workers=1), start + 1):
    model(x).sum().backward()
    optimizer.step()
    if step == start + 5:
        print(f"rank {job.rank} began at {start}", flush=True)
    if torchpar.runtime.stop_requested():
        print(f"rank {job.rank} stops at {step}", flush=True)
        if job.rank == 0:
            torch.save({"step": step}, checkpoint.with_suffix(".new"))
            time.sleep(float(sys.argv[1]))
            checkpoint.with_suffix(".new").rename(checkpoint)
            print(f"saved {step}", flush=True)
        break
"""

# Knows nothing of torchpar: each rank has a handler of its own, and that of rank 1 takes long.
HANDLES = """\
import os, signal, sys, time
import torch.distributed
torch.distributed.init_process_group("gloo")
rank = os.environ["RANK"]
def save(number, frame):
    time.sleep(35 * int(rank))
    print(f"rank {rank} has saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print(f"rank {rank} is there", flush=True)
while True:
    time.sleep(1)
"""

# Knows nothing of any of it.
PLAIN = "import os, time\nprint('rank', os.environ.get('RANK'), 'is there', flush=True)\ntime.sleep(3600)\n"


def came_to_its_end(machine: Machine, name: str) -> bool:
    """Whether the unit is inactive, not failed, and nothing of it is left."""
    unit = TRAIN.format(name)
    assert (machine.show(unit, "ActiveState"), machine.show(unit, "Result")) == ("inactive", "success")
    group = machine.show(unit, "ControlGroup")
    assert not group or not machine.exists(f"/sys/fs/cgroup{group}/cgroup.procs")
    return "Traceback" not in machine.journal(unit)


def test_a_stop_leaves_a_whole_checkpoint_and_the_next_start_goes_on(host: Machine) -> None:
    """Both ranks stop at the same step, while their loaders are busy, as often as it is done."""
    stop_and_start(host, "/usr/bin/python3")


def stop_and_start(host: Machine, python: str) -> None:
    """Two ranks are stopped and started STOPS times, with the torch of an interpreter."""
    host.write("/srv/saves.py", SAVES)
    apply(host, f"[Train test-saves]\nScript=/srv/saves.py\nArguments=1\nPython={python}\nRanks=2\n")
    unit, step = TRAIN.format("test-saves"), 0
    for done in range(STOPS):
        host.run("systemctl", "start", unit)
        host.wait_until(
            lambda step=step: len(lines(host, "test-saves", rf"rank \d began at {step}\n")) == 2, "five steps"
        )
        host.run("systemctl", "stop", unit)
        assert came_to_its_end(host, "test-saves")
        stops = lines(host, "test-saves", r"rank \d stops at (\d+)")
        assert len(stops) == 2 * (done + 1) and stops[-1] == stops[-2] and int(stops[-1]) > step
        step = int(stops[-1])
        assert lines(host, "test-saves", r"saved (\d+)")[-1] == str(step)
        assert host.sh("ls /var/lib/torchpar/train/test-saves").stdout == "checkpoint.pt\n"


def test_slow_saves_are_not_cut_off_however_a_job_is_asked(host: Machine) -> None:
    """Longer than the half minute that torchrun gives its ranks, when one has ended or SIGTERM has come. Jobs that
    save nothing stop at once."""
    host.write("/srv/saves.py", SAVES)
    host.write("/srv/handles.py", HANDLES)
    host.write("/srv/plain.py", PLAIN)
    apply(
        host,
        "[Train test-saves]\nScript=/srv/saves.py\nArguments=35\nRanks=2\n"
        "[Train test-handles]\nScript=/srv/handles.py\nRanks=2\nMaxRestarts=2\n"
        "[Train test-plain]\nScript=/srv/plain.py\n"
        "[Train test-plain-ranks]\nScript=/srv/plain.py\nRanks=2\n",
    )
    here = "is there"
    ready = {"saves": ("began at 0", 2), "handles": (here, 2), "plain": (here, 1), "plain-ranks": (here, 2)}
    units = [TRAIN.format(f"test-{name}") for name in ready]
    host.run("systemctl", "start", *units)
    for name, (said, count) in ready.items():
        host.wait_until(
            lambda name=name, said=said, count=count: len(lines(host, f"test-{name}", said)) == count,
            f"every rank of {name}",
        )
    host.run("systemctl", "stop", "--no-block", *units[:2])
    host.run("systemctl", "stop", *units[2:])
    host.run("systemctl", "stop", *units)
    assert all(came_to_its_end(host, f"test-{name}") for name in ready)
    assert re.search(r"saved \d+", host.journal(units[0]))
    assert sorted(lines(host, "test-handles", r"rank \d has saved")) == ["rank 0 has saved", "rank 1 has saved"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_job_wants_to_save_is_saved(host: Machine, kind: str) -> None:
    """By whichever of its processes, and however it learns of the stop."""
    save_and_stop(host, kind)


def save_and_stop(host: Machine, kind: str, python: str = "/usr/bin/python3") -> None:
    """A job of this kind is started and stopped STOPS_OF_A_KIND times, with the torch of an interpreter."""
    job, name = KINDS[kind], f"test-{kind}"
    unit = TRAIN.format(name)
    host.write(f"/srv/{kind}.py", job.script)
    host.sh("[ -e /srv/venv ] || python3 -m venv --without-pip /srv/venv")
    keys = job.keys if "Python=" in job.keys else f"{job.keys}Python={python}\n"
    apply(host, f"[Train {name}]\nScript=/srv/{kind}.py\nRestart=no\n{keys}")

    def said() -> tuple[int, int]:
        words = lines(host, name, r": (ready|saved)\n")
        return words.count("ready"), words.count("saved")

    for done in range(STOPS_OF_A_KIND):
        before = said()
        host.run("systemctl", "start", unit)
        # What is saved before the stop comes before the last `ready`.
        host.wait_until(lambda before=before: said()[0] == before[0] + job.ready, "every process")
        host.run("systemctl", "stop", unit)
        assert came_to_its_end(host, name)
        assert said() == (before[0] + job.ready, before[1] + job.saved), f"stop {done + 1}"
        assert "not ended within" not in host.journal(unit)


def test_ranks_and_their_stops_are_in_the_metrics(host: Machine) -> None:
    """Where each rank is while it runs; how long the stop took, and that it was forced, when it is over."""
    host.write("/srv/handles.py", HANDLES)
    apply(host, "[Train test-seen]\nScript=/srv/handles.py\nRanks=2\nCheckpointGrace=1\n")
    unit = TRAIN.format("test-seen")
    host.run("systemctl", "start", unit)

    def metrics() -> dict[str, str]:
        """The metrics of the unit, by name and further labels."""
        pattern = rf'^torchpar_(\w+){{unit="{unit}"(?:,(.*))?}} (\S+)$'
        pairs = re.findall(pattern, host.run("torchpar", "metrics").stdout, re.MULTILINE)
        return {f"{name} {labels}".strip(): value for name, labels, value in pairs}

    host.wait_until(lambda: metrics().get("job_world_size") == "2", "both ranks have told")
    found = metrics()
    assert found["job_world_size_expected"] == "2" and found["graceful_stop_forced_total"] == "0"
    for rank in ('local_rank="0"', 'local_rank="1"'):
        assert found[f"rank_affinity_ok {rank}"] == "1"
        assert int(found[f"rank_runnable_threads {rank}"]) <= 8
    host.run("systemctl", "stop", unit)
    host.wait_until(lambda: metrics().get("graceful_stop_forced_total") == "1", "the stop was seen")
    assert 1 <= int(metrics()["graceful_stop_seconds"]) < 60


def test_a_stop_before_the_first_line_ends_the_job(host: Machine) -> None:
    """At any moment of its start, with one rank and with two."""
    host.write("/srv/plain.py", PLAIN)
    apply(host, "[Train test-one]\nScript=/srv/plain.py\n[Train test-two]\nScript=/srv/plain.py\nRanks=2\n")
    for name in ("test-one", "test-two"):
        for done in range(STOPS):
            host.run("systemctl", "start", TRAIN.format(name))
            host.sh(f"sleep {done * 0.3:.1f}")
            host.run("systemctl", "stop", TRAIN.format(name))
            assert came_to_its_end(host, name)
            assert "not ended within" not in host.journal(TRAIN.format(name))


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_from_elsewhere_is_a_failure_and_the_job_starts_again(host: Machine, ranks: int) -> None:
    """earlyoom sends it, say, to the main process or to a rank; Restart=no is respected."""
    host.write("/srv/plain.py", PLAIN)
    host.write("/srv/handles.py", HANDLES.replace("35 * int(rank)", "0"))
    script, name = {1: "plain", 2: "handles"}[ranks], f"test-killed-{ranks}"
    unit = TRAIN.format(name)
    for restart, state in (("on-failure", "activating"), ("no", "failed")):
        apply(
            host,
            f"[Train {name}]\nScript=/srv/{script}.py\nRanks={ranks}\nRestart={restart}\nService.RestartSec=1h\n",
        )
        for whom in ("main", "all"):
            here = len(lines(host, name, "is there")) + ranks
            host.run("systemctl", "start", unit)
            host.wait_until(lambda here=here: len(lines(host, name, "is there")) == here, "every rank")
            host.run("systemctl", "kill", f"--kill-who={whom}", "--signal=TERM", unit)
            host.wait_until(lambda state=state: host.show(unit, "ActiveState") == state, "its end")
            assert host.show(unit, "Result") == "exit-code"
            host.run("systemctl", "stop", unit)
            host.run("systemctl", "reset-failed", unit, check=False)
    assert ("the main process was ended by SIGTERM" in host.journal(unit)) is (ranks == 1)
