"""Training jobs as people start them, and by torchpar: alone and two at a time, on a booted Debian.

    make bench-train    or    python3 -m tests.benchmarks.bench_train [--stacks ...] [--jobs ...] [--json FILE] ...

A round runs every row once; what is printed are medians over the rounds, their ratio to plain python, the spread (least
to most), page faults per step and peak memory. The stack `wheel` is PyTorch's wheel from PyPI.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.machines.machine import Machine, MachineError
from tests.machines.package import build_package
from tests.machines.roots import Suite
from tests.machines.wheel import MOUNT, PYTHON, wheel_environment, wheel_suite

STACKS = ("wheel", *(suite.value for suite in Suite))
JOBS = ("mlp", "conv", "encoder", "loader")
ROWS = ("plain", "expert", "hand-made", "run_cpu", "torchrun", "torchpar")
BENCH = "/srv/bench"
JOB = f"{BENCH}/train_job.py"
LIB = "/usr/lib/x86_64-linux-gnu"

# What the facts say avoids page faults; run_cpu's own settings do not.
MALLOC_CONF = "oversize_threshold:1,background_thread:true,metadata_thp:auto,dirty_decay_ms:30000,muzzy_decay_ms:-1"

# The ratios that torchpar is to reach: (job, copies) → least ratio to plain python.
TARGETS = {("mlp", 2): 15.0, ("encoder", 2): 10.0, ("conv", 2): 2.0, ("conv", 1): 1.7}
LEAST_OF_BEST = 0.98
LEAST_OF_RUN_CPU = 1.4
MATMUL_TARGET = 10.0

MATMUL = """
import time, torch
a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
a @ b
times = []
for _ in range(10):
    start = time.perf_counter()
    a @ b
    times.append(time.perf_counter() - start)
print(2 * 1024 ** 3 / min(times) / 1e9)
"""


@dataclass
class Row:
    """What was measured of one way to start a job: rates in steps/s summed over its copies, one a round."""

    rates: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    threads: int = 0

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


class DoesNotRun(Exception):
    """A row's command has ended by itself, with its last line."""


class Bench:
    """One booted machine with torchpar, and one PyTorch in it."""

    def __init__(self, machine: Machine, python: str, arguments: argparse.Namespace) -> None:
        self.machine = machine
        self.python = python
        self.arguments = arguments
        self.cpus = len(os.sched_getaffinity(0))

    def compare(self, kind: str, copies: int) -> dict[str, Row]:
        """Every row, round by round."""
        conf = "[Host]\nReserveCores=0\n"
        for copy in range(copies):
            # Copies share the host; one alone has all of it.
            conf += f"[Train bench{copy}]\nScript={JOB}\nArguments={kind}\nPython={self.python}\n"
            conf += "Enabled=yes\nRestart=no\n"
            if kind == "loader":
                conf += f"LoaderWorkers={self.arguments.loader_workers}\n"
        self.machine.write("/etc/torchpar.conf", conf)
        self.machine.run("torchpar", "apply", timeout=300)
        rows = {name: Row() for name in self.arguments.rows}
        for turn in range(self.arguments.rounds):
            # Another one begins each round: what the host does now and then does not meet the same row always.
            names = tuple(rows)
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                row = rows[name]
                try:
                    self._measure(name, row, kind, copies)
                except DoesNotRun as error:
                    if row.rates:
                        raise
                    # Debian's own torchrun, for example.
                    print(f"\n{kind}: {name} is left out, as it does not run: {error}")
                    del rows[name]
        return rows

    def _measure(self, name: str, row: Row, kind: str, copies: int) -> None:
        folders = [f"/var/lib/torchpar/train/bench{i}" if name == "torchpar" else f"{BENCH}/{i}" for i in range(copies)]
        clear = 'rm -rf "$folder"/result-* "$folder"/output "$folder"/logs'
        self.machine.sh(f'for folder; do mkdir -p "$folder"; {clear}; done', *folders)
        first = time.monotonic() + self.arguments.warm
        self.machine.write(f"{BENCH}/window", f"{first} {first + self.arguments.seconds}\n")
        started = []
        if name == "torchpar":
            self.machine.run("systemctl", "start", *(f"torchpar-train@bench{i}" for i in range(copies)))
        else:
            for folder, command in zip(folders, self._commands(name, kind, copies), strict=False):
                started.append(self.machine.start("sh", "-c", f"cd {folder}; exec {command} >output 2>&1"))
        # Asking meanwhile would take part of what is measured.
        time.sleep(max(0.0, first + self.arguments.seconds - time.monotonic()))
        try:
            results = self._results(folders, copies, name, started)
        finally:
            for process in started:
                process.wait(timeout=self.arguments.warm + self.arguments.seconds + 60)
            if name == "torchpar":
                self.machine.run("systemctl", "stop", *(f"torchpar-train@bench{i}" for i in range(copies)))
        row.rates.append(sum(result["rate"] for result in results))
        row.faults.append(statistics.mean(result["faults"] for result in results))
        row.peaks.append(sum(result["peak_mib"] for result in results))
        row.threads = int(results[0]["threads"])

    def _commands(self, name: str, kind: str, copies: int) -> list[str]:
        """The shell command of each copy, or one that starts all."""
        plain = f"{self.python} {JOB} {kind}"
        share = self.cpus // copies
        cpus = [f"{i * share}-{(i + 1) * share - 1}" for i in range(copies)]
        threads = f"OMP_NUM_THREADS={share}"
        if name in ("expert", "hand-made") and kind == "loader":
            # Who tunes by hand also asks for workers, and gives them a core where there is one to spare.
            plain += f" {self.arguments.loader_workers}"
            threads = f"OMP_NUM_THREADS={max(1, share - self.arguments.loader_workers)}"
        if name == "expert":
            return [f"env {threads} LD_PRELOAD={LIB}/libjemalloc.so.2 MALLOC_CONF={MALLOC_CONF} {plain}"] * copies
        if name == "hand-made":
            preload = f"LD_PRELOAD={LIB}/libtcmalloc_minimal.so.4"
            return [f"env {threads} {preload} taskset -c {own} {plain}" for own in cpus]
        if name == "run_cpu":
            instances = f"--ninstances {copies} --ncores_per_instance {share} " if copies > 1 else ""
            return [f"{self.python} -m torch.backends.xeon.run_cpu {instances}{JOB} {kind}"]
        if name == "torchrun":
            return [f"{self.python} -m torch.distributed.run --standalone --nproc_per_node=1 {JOB} {kind}"] * copies
        return [plain] * copies

    def _results(
        self, folders: Sequence[str], copies: int, name: str, started: Sequence[subprocess.Popen[str]]
    ) -> list[dict[str, float]]:
        def read() -> list[dict[str, float]] | None:
            for folder, process in zip(folders, started, strict=False):
                if process.poll():
                    raise DoesNotRun(self.machine.read(f"{folder}/output").strip().rpartition("\n")[2])
            script = 'for folder; do cat "$folder"/result-*.json 2>/dev/null || :; done'
            found = self.machine.sh(script, *folders).stdout
            results = [json.loads(f"{{{text}") for text in found.split("{") if text]
            return results if len(results) == copies else None

        try:
            wait = self.arguments.warm + self.arguments.seconds + 180
            return self.machine.wait_until(read, f"the results of {name}", timeout=wait)
        except MachineError:
            print(self.machine.sh('cat "$@" || :', *(f"{folder}/output" for folder in folders)).stdout, file=sys.stderr)
            raise


def show(stack: str, kind: str, copies: int, rows: dict[str, Row]) -> None:
    """The table of one job."""
    plain = rows["plain"].rate if "plain" in rows else float("nan")
    print(f"\n{stack}: {kind}, {'alone' if copies == 1 else f'{copies} at a time'}")
    print(f"  {'':10} {'steps/s':>9} {'least to most':>19} {'of plain':>9} {'faults/step':>12} {'peak MiB':>9} threads")
    for name, row in rows.items():
        spread = f"{min(row.rates):.2f} to {max(row.rates):.2f}"
        print(
            f"  {name:10} {row.rate:9.2f} {spread:>19} {row.rate / plain:9.2f} {statistics.median(row.faults):12.1f}"
            f" {statistics.median(row.peaks):9.0f} {row.threads:7}"
        )
    if "torchpar" not in rows:
        return
    ours = rows["torchpar"].rate
    if target := TARGETS.get((kind, copies)):
        print(f"  of plain {ours / plain:.2f} (target: at least {target:g})")
    others = {name: row.rate for name, row in rows.items() if name != "torchpar"}
    if others:
        best = max(others, key=lambda name: others[name])
        print(f"  of the best other row, {best}: {ours / others[best]:.3f} (target: at least {LEAST_OF_BEST})")
    if kind == "conv" and "run_cpu" in rows:
        print(f"  of run_cpu: {ours / rows['run_cpu'].rate:.2f} (target: at least {LEAST_OF_RUN_CPU})")
    if kind == "conv" and "plain" in rows:
        share = statistics.median(rows["torchpar"].faults) / max(1.0, statistics.median(rows["plain"].faults))
        print(f"  page faults per step of glibc's: {share:.2%} (target: at most 1 %)")


def bench_matmul(machine: Machine, rounds: int) -> None:
    """Debian's torch with libblas3 alone, as `apt install python3-torch` leaves it, and with what torchpar brings."""
    link = f"libblas.so.3-{Path(LIB).name}"
    stock, fast = [], []
    for _ in range(rounds):
        machine.run("update-alternatives", "--set", link, f"{LIB}/blas/libblas.so.3")
        stock.append(float(machine.run("/usr/bin/python3", "-c", MATMUL, timeout=300).stdout))
        machine.run("update-alternatives", "--auto", link)
        fast.append(float(machine.run("/usr/bin/python3", "-c", MATMUL, timeout=300).stdout))
    ratio = statistics.median(fast) / statistics.median(stock)
    print(f"\n{machine.suite.release}'s torch, matmul of 1024 x 1024, GFLOP/s, {rounds} interleaved runs")
    for name, values in (("python3-torch alone", stock), ("with torchpar", fast)):
        print(f"  {name:20} {statistics.median(values):8.1f}  ({min(values):.1f} to {max(values):.1f})")
    print(f"  ratio of medians     {ratio:8.1f}  (target: at least {MATMUL_TARGET:g})", flush=True)


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(prog="bench_train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=STACKS)
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=list(JOBS))
    parser.add_argument("--copies", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=float, default=6, help="seconds to start and to warm up (default: 6)")
    parser.add_argument("--seconds", type=float, default=8, help="seconds that are measured (default: 8)")
    parser.add_argument("--loader-workers", type=int, default=1, help="of the job `loader` (default: 1)")
    parser.add_argument("--json", type=Path, help="write all figures into this file too")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, object]] = {}
    for stack in arguments.stacks:
        suite = wheel_suite() if stack == "wheel" else Suite(stack)
        mounts = {MOUNT: wheel_environment(suite)} if stack == "wheel" else {}
        with Machine(suite, "bench", mounts=mounts) as machine:
            # The wheel brings its own BLAS and needs nothing of Debian's torch.
            machine.install_deb(build_package(suite), recommends=stack != "wheel")
            machine.install("libjemalloc2", "libtcmalloc-minimal4", "util-linux", recommends=False)
            machine.push(Path(__file__).with_name("train_job.py"), JOB)
            if stack != "wheel":
                # What torch alone would have brought; OpenBLAS came instead of it.
                machine.install("libblas3", recommends=False)
                bench_matmul(machine, arguments.rounds)
            bench = Bench(machine, PYTHON if stack == "wheel" else "/usr/bin/python3", arguments)
            for kind in arguments.jobs:
                for copies in arguments.copies:
                    load = os.getloadavg()[0]
                    rows = bench.compare(kind, copies)
                    show(stack, kind, copies, rows)
                    print(f"  load of the host before: {load:.1f}", flush=True)
                    figures[f"{stack} {kind} {copies}"] = {name: asdict(row) for name, row in rows.items()}
                    if arguments.json:
                        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
