"""What torchpar's runtime costs a job: its start, then counting, watching the loader, and telling torchpard.

    python3 -m tests.benchmarks.bench_progress [PYTHON]

PYTHON is an interpreter with torch. A script that ends at once, and one that only imports torch, are timed from start
to end. The same loop runs as `python x.py` and by run.py with a plan, in processes of
their own, by turns. The cost is too small for a step of 5 ms to show it on a machine that is not quiet, so it is also
measured with a step that computes nothing, where all that is left is the loop itself.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from torchpar.contract.job import JobSettings, RankSettings, job_environment

ROUNDS = 9
STARTS = 25
STEP_SECONDS = 0.005

# Batches in all and in each pass.
LOOPS = {"one pass": (3000, 3000), "400 passes of 4 batches": (1600, 4), "a fresh iterator each step": (1000, 1)}

# Arguments: batches, matrix products in each, batches in each pass over the data: one pass, many short ones, and 1 for
# a fresh iterator at every step. Prints the seconds per step, by the clock and of the process's CPU time.
LOOP = """
import json, sys, time
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.set_num_threads(1)
batches, products, epoch = map(int, sys.argv[1:])
class Ready(TensorDataset):
    # A whole batch at once, as fast as a loader can be.
    def __getitem__(self, i): return data
    def __len__(self): return max(2, epoch) * 8
data = torch.rand(8)
matrix = torch.rand(128, 128)
optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
loader = DataLoader(Ready(data), batch_size=8, collate_fn=lambda items: items[0])
def step():
    for _ in range(products): torch.mm(matrix, matrix)
    optimizer.step()
def run():
    for _ in range(batches // epoch):
        if epoch == 1:
            batch = next(iter(loader))
            step()
            continue
        for batch in loader: step()
run()
wall, cpu = time.perf_counter(), time.process_time()
run()
print(json.dumps([(time.perf_counter() - wall) / batches, (time.process_time() - cpu) / batches]))
"""

# Seconds of one report, in memory as /run is.
REPORT = """
import os, sys, tempfile, time, types
sys.path.append(sys.argv[1])
from torchpar.runtime.patches import progress
with tempfile.TemporaryDirectory(dir="/dev/shm") as progress.JOBS:
    os.environ["RUNTIME_DIRECTORY"] = progress.JOBS + "/torchpar-train@bench"
    os.mkdir(os.environ["RUNTIME_DIRECTORY"])
    meter, times = progress.Meter(None, types.SimpleNamespace(local_rank=0)), []
    for _ in range(2001):
        begin = time.perf_counter()
        meter._tell(begin)
        times.append(time.perf_counter() - begin)
    assert meter._reports == 2001
print(sorted(times)[1000])
"""

RANK = RankSettings(local_rank=0, cpus="0", numa_nodes="0", threads=1, loader_workers=0, gpus=())
JOB = JobSettings(service="torchpar-train@bench.service", interop_threads=1, cudnn_benchmark=None, ranks=(RANK,))


def main() -> None:
    """Both measurements, and the report."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    package = Path(__file__).parents[2] / "src" / "torchpar"
    with tempfile.TemporaryDirectory() as folder:
        loop = Path(folder, "loop.py")
        loop.write_text(LOOP, encoding="utf-8")
        launcher = Path(folder, "run.py")
        launcher.write_bytes((package / "runtime" / "run.py").read_bytes())
        Path(folder, "torchpar").symlink_to(package)
        commands = {"plain": [python, str(loop)], "torchpar": [python, str(launcher), "--", str(loop)]}
        script = Path(folder, "start.py")
        for source in ("", "import torch"):
            script.write_text(source, encoding="utf-8")
            compare_starts(source, [python, str(script)], [python, str(launcher), "--", str(script)])

        empty = {epoch: turns(commands, batches, 0, epoch) for batches, epoch in LOOPS.values()}
        products = 100
        while (taken := run(commands["plain"], 20, products, 20)[0]) < STEP_SECONDS * 0.8:
            products = int(products * STEP_SECONDS / taken) + 1
        full = turns(commands, 200, products, 200)
        done = subprocess.run([python, "-c", REPORT, folder], capture_output=True, check=True, text=True)
        report = float(done.stdout)

    for name, (_, epoch) in LOOPS.items():
        times = empty[epoch]
        cost = statistics.median(times["torchpar"]) - statistics.median(times["plain"])
        both = f"plain {table(times['plain'])}, torchpar {table(times['torchpar'])}"
        print(f"{name}, a step without computing, µs of CPU time: {both}")
        share = 100 * cost / STEP_SECONDS
        print(f"  the runtime costs {cost * 1e6:.1f} µs per step, {share:.3f} % of 5 ms (target: below 1)")
    print(f"  a report costs {report * 1e6:.0f} µs every two seconds, {100 * report / 2:.4f} %")
    ratio = statistics.median(full["torchpar"]) / statistics.median(full["plain"])
    print(f"step of {statistics.median(full['plain']) * 1e3:.1f} ms: plain 1.000, torchpar {ratio:.3f}")
    print(f"  single runs   plain {table(full['plain'])}   torchpar {table(full['torchpar'])} µs of CPU time")


def compare_starts(source: str, plain: list[str], ours: list[str]) -> None:
    """Print how long both commands take from their start to their end, by turns."""
    times: tuple[list[float], list[float]] = ([], [])
    environment = {**os.environ, **job_environment(JOB)}
    for i in range(STARTS):
        for kind in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            subprocess.run((plain, ours)[kind], check=True, env=environment, capture_output=True)
            times[kind].append(time.perf_counter() - start)
    added = statistics.median(times[1]) - statistics.median(times[0])
    print(f"a script of {source or 'nothing'!r}, µs: plain {table(times[0])}, torchpar {table(times[1])}")
    print(f"  the runtime adds {added * 1e3:.1f} ms (target: at most 30)")


def turns(commands: dict[str, list[str]], batches: int, products: int, epoch: int) -> dict[str, list[float]]:
    """The CPU time per step of each command's runs, which alternate in changing order."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(ROUNDS):
        for name in list(commands)[:: 1 if i % 2 else -1]:
            times[name].append(run(commands[name], batches, products, epoch)[1])
    return times


def run(command: list[str], batches: int, products: int, epoch: int) -> tuple[float, float]:
    """Seconds per step, by the clock and of CPU time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **job_environment(JOB)}
    argv = [*command, str(batches), str(products), str(epoch)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    wall, cpu = json.loads(done.stdout)
    return wall, cpu


def table(times: list[float]) -> str:
    """Median, least and most, in microseconds."""
    return f"{statistics.median(times) * 1e6:.1f} ({min(times) * 1e6:.1f} to {max(times) * 1e6:.1f})"


if __name__ == "__main__":
    main()
