"""How jobs stop on a booted Debian: nothing is cut off, and the next start goes on.

STOPS=20 in the environment stops the job that saves so many times; usually it is done twice.
"""

from __future__ import annotations

import os
import re

from tests.machines.machine import Machine
from tests.machines.test_apply import TRAIN, apply
from tests.machines.test_ranks import host, lines

__all__ = ["host"]  # the fixture

STOPS = int(os.environ.get("STOPS", "2"))

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
    time.sleep(40 * int(rank))
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
            lambda step=step: len(lines(host, "test-saves", rf"rank \d began at {step}\n")) == 2, "five steps", 180
        )
        host.run("systemctl", "stop", unit, timeout=180)
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
        "[Train test-saves]\nScript=/srv/saves.py\nArguments=40\nRanks=2\n"
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
            240,
        )
    host.run("systemctl", "stop", "--no-block", *units[:2])
    host.run("systemctl", "stop", *units[2:], timeout=180)
    host.run("systemctl", "stop", *units, timeout=240)
    assert all(came_to_its_end(host, f"test-{name}") for name in ready)
    assert re.search(r"saved \d+", host.journal(units[0]))
    assert sorted(lines(host, "test-handles", r"rank \d has saved")) == ["rank 0 has saved", "rank 1 has saved"]
