"""Scripts that save when they are stopped, each by other processes or in another way, and what each is to say.

`ready` comes as often as processes are there to be stopped, `saved` as often as something has to be saved then.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A script, further keys of its section, and how often it says that it is ready and that it has saved."""

    script: str
    ready: int = 1
    saved: int = 1
    keys: str = ""
    torch: bool = True  # whether it needs one


# Ranks that a script makes by itself, and in which SIGTERM asks for a checkpoint. The parent has no handler. These wait
# a moment at their end, as gloo's thread may need the interpreter after destroy_process_group() and then aborts it; the
# runtime does that for ranks that the plan knows.
SPAWN = """\
import os, signal, socket, time
os.environ.setdefault("USE_LIBUV", "0")
import torch, torch.distributed as dist, torch.multiprocessing

def train(rank, port):
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    stop = torch.zeros(1)
    for step in range(10**6):
        stop.fill_(len(asked))
        dist.all_reduce(stop)
        if step == 5:
            print("ready", flush=True)
        if stop.item():
            break
        time.sleep(0.02)
    time.sleep(2)
    print("saved", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    time.sleep(0.5)

if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train, args=(port,), nprocs=2)
"""

# The first process starts the other as a command of its own, and both ask.
OWN_RANKS = """\
import os, socket, subprocess, sys, time
os.environ.setdefault("USE_LIBUV", "0")
import torch, torch.distributed as dist, torchpar.runtime

child = None
if "RANK" not in os.environ:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    child = subprocess.Popen([sys.executable, __file__], env={**os.environ, "RANK": "1"})
    os.environ["RANK"] = "0"
dist.init_process_group("gloo")
numbers = torch.zeros(1)
for step in range(10**6):
    dist.all_reduce(numbers)
    time.sleep(0.02)
    if step == 5:
        print("ready", flush=True)
    if torchpar.runtime.stop_requested():
        break
dist.barrier()
steps = [torch.zeros(1) for _ in range(2)]
dist.all_gather(steps, torch.tensor([float(step)]))
assert steps[0] == steps[1]
print("saved", flush=True)
dist.destroy_process_group()
time.sleep(0.5)
sys.exit(child.wait() if child else 0)
"""

# A Slurm job's: SIGUSR1 is for a checkpoint in between, and is set before or after the first question.
USR1 = """\
import os, signal, time, torchpar.runtime
def checkpoint(number, frame):
    print("saved", flush=True)
ORDER
os.kill(os.getpid(), signal.SIGUSR1)
print("ready", flush=True)
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGUSR1)
"""
HANDLER, ASK = "signal.signal(signal.SIGUSR1, checkpoint)", "torchpar.runtime.stop_requested()"

# Saves in forked processes, and ends before the last of them has saved.
FORKED = """\
import os, sys, time, torchpar.runtime
while not torchpar.runtime.stop_requested():
    if not os.path.exists("ready"):
        open("ready", "w").close()
        print("ready", flush=True)
    time.sleep(0.02)
for seconds in 1, 3:
    if os.fork() == 0:
        time.sleep(seconds)
        print("saved", flush=True)
        os._exit(0)
os.unlink("ready")
"""

# Finishes its epoch after SIGTERM, for which it needs its loader workers, and validates with new ones.
LOADER = """\
import signal, sys, time, torch
from torch.utils.data import DataLoader, Dataset

class Slow(Dataset):
    def __len__(self):
        return 200
    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.ones(4)

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
for epoch in range(10**6):
    for step, batch in enumerate(DataLoader(Slow(), batch_size=2, num_workers=2)):
        if (epoch, step) == (0, 5):
            print("ready", flush=True)
    if asked:
        break
assert len(list(DataLoader(Slow(), batch_size=50, num_workers=2))) == 4
print("saved", flush=True)
sys.exit(143)
"""

# The same with workers that are started anew each epoch, and take seconds for it: a stop meets some that are starting.
SPAWNED_LOADER = """\
import signal, sys, torch
from torch.utils.data import DataLoader

asked = []
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    print("ready", flush=True)
    for epoch in range(10**6):
        loader = DataLoader(list(range(4)), num_workers=1, multiprocessing_context="spawn")
        assert len(list(loader)) == 4
        if asked:
            break
    print("saved", flush=True)
    sys.exit(143)
"""

# A parent that has looked at its data with loader workers, and then starts ranks.
LOOKS = SPAWN.replace(
    'if __name__ == "__main__":\n',
    'if __name__ == "__main__":\n    list(torch.utils.data.DataLoader(list(range(4)), num_workers=1))\n',
)

# Ranks that are no Python of the script's own, with a shell between; each takes another time, the parent none.
SHELL = """\
import subprocess, sys
rank = '''
import signal, sys, time
def save(number, frame):
    time.sleep(float(sys.argv[1]))
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    time.sleep(1)
'''
command = ["sh", "-c", '"$0" -c "$1" "$2"; true', sys.executable, rank]
for rank in [subprocess.Popen([*command, seconds]) for seconds in ("0.5", "3")]:
    rank.wait()
"""

# Workers of a pool, each with something to save.
POOL = """\
import concurrent.futures, multiprocessing, os, signal, time
def work(number):
    def save(number, frame):
        time.sleep(2)
        print("saved", flush=True)
        os._exit(0)
    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
    while True:
        time.sleep(1)
if __name__ == "__main__":
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(work, range(2)))
"""

# Begins again in the same process, as an elastic launcher does.
AGAIN = """\
import os, sys, time, torchpar.runtime
torchpar.runtime.stop_requested()
if len(sys.argv) == 1:
    os.execv(sys.executable, [sys.executable, __file__, "again"])
print("ready", flush=True)
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
print("saved", flush=True)
"""

# Another interpreter's: the children of a virtual environment without torchpar ask too.
CHILDREN = """\
import subprocess, sys
child = '''
import time, torchpar.runtime
torchpar.runtime.stop_requested()
print("ready", flush=True)
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
print("saved", flush=True)
'''
assert [subprocess.Popen([sys.executable, "-c", child]) for _ in range(2)][0].wait() == 0
print("saved", flush=True)
"""

# Rank 1 comes late to its first question; the ranks do not compute together.
LATE = """\
import os, time, torch.distributed as dist, torchpar.runtime
dist.init_process_group("gloo")
rank = dist.get_rank()
if rank == 0:
    torchpar.runtime.stop_requested()
print("ready", flush=True)
if rank == 1:
    time.sleep(4)
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
print("saved", flush=True)
dist.barrier()
dist.destroy_process_group()
"""

# Rank 1 has less data, and has left its loop when the stop comes.
JOIN = """\
import torch, torch.distributed as dist, time, torchpar.runtime
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
with model.join():
    for step in range(10**6 if dist.get_rank() == 0 else 5):
        model(torch.ones(2, 4)).sum().backward()
        if step == 20:
            print("ready", flush=True)
        if torchpar.runtime.stop_requested():
            break
        time.sleep(0.01)
print("saved", flush=True)
dist.barrier()
dist.destroy_process_group()
"""

# Rank 1 has ended when the stop comes.
ENDED = """\
import os, time, torch.distributed as dist, torchpar.runtime
dist.init_process_group("gloo")
if dist.get_rank() == 1:
    torchpar.runtime.stop_requested()
    os._exit(0)
torchpar.runtime.stop_requested()
time.sleep(1)
print("ready", flush=True)
while not torchpar.runtime.stop_requested():
    time.sleep(0.02)
print("saved", flush=True)
"""

KINDS = {
    "spawn": Kind(SPAWN, 2, 2),
    "spawn-faulthandler": Kind(SPAWN, 2, 2, "Environment=PYTHONFAULTHANDLER=1\n"),
    "spawn-after-a-loader": Kind(LOOKS, 2, 2, "Environment=PYTHONFAULTHANDLER=1\n"),
    "own-ranks": Kind(OWN_RANKS, 2, 2),
    "usr1-before": Kind(USR1.replace("ORDER", f"{HANDLER}\n{ASK}"), 1, 2, torch=False),
    "usr1-after": Kind(USR1.replace("ORDER", f"{ASK}\n{HANDLER}"), 1, 2, torch=False),
    "forked": Kind(FORKED, 1, 2, torch=False),
    "loader": Kind(LOADER),
    "loader-spawn": Kind(SPAWNED_LOADER),
    "loader-faulthandler": Kind(LOADER, keys="Environment=PYTHONFAULTHANDLER=1\n"),
    "shell": Kind(SHELL, 2, 2, torch=False),
    "pool": Kind(POOL, 2, 2, torch=False),
    "again": Kind(AGAIN, torch=False),
    "children": Kind(CHILDREN, 2, 3, "Python=/srv/venv/bin/python3\n", torch=False),
    "late": Kind(LATE, 2, 2, "Ranks=2\n"),
    "join": Kind(JOIN, 1, 2, "Ranks=2\n"),
    "ended": Kind(ENDED, 1, 1, "Ranks=2\n"),
}
