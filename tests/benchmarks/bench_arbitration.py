"""Services that share a host: started by hand, alone again, and beside one that lends its CPUs, on a booted Debian.

    make bench-arbitration    or    python3 -m tests.benchmarks.bench_arbitration [--stacks ...] [--jobs ...] ...

share: two and three jobs, started by hand, against the better of as many that a person has pinned to parts of the
CPUs (taskset, OMP_NUM_THREADS) and of as many with so many threads that are not pinned, which may be better where there
are more jobs than CPUs. again: a job from five seconds after the end of another one, against one that was always alone.
lend: a training job beside an inference service that runs for half of each period, against fixed halves of the host;
and the service's latency. All rows of a part are run once a round; printed are medians over the rounds, the spread
(least to most), and ratios. One job takes some ten minutes with one PyTorch, so all three with both take an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.benchmarks.bench_train import BENCH, JOB, LIB
from tests.machines.machine import Machine
from tests.machines.package import build_package
from tests.machines.roots import Suite
from tests.machines.wheel import MOUNT, PYTHON, wheel_environment, wheel_suite

PARTS = ("share", "again", "lend")
JOBS = ("mlp", "conv", "encoder")
INFER = "torchpar-infer@load.service"

# The least ratios, and of latencies the greatest.
TARGETS = {"share": 0.95, "again": 0.98, "lend": 1.5, "p99": 1.1}
AGAIN_SECONDS = 5.0

MODEL = """
import json, torch
face = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 784]}]}
model = torch.nn.Sequential(torch.nn.Linear(784, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 10)).eval()
torch.jit.save(torch.jit.script(model), "/srv/bench/model.pt", _extra_files={"torchpar.json": json.dumps(face)})
"""

# Twenty requests a second until the time that is named; prints the seconds that each took.
CLIENT = """
import http.client, json, sys, time
body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 784], "data": [0.5] * 784}]})
connection = http.client.HTTPConnection("127.0.0.1", 8000)
times, due = [], time.monotonic()
while due < float(sys.argv[1]):
    time.sleep(max(0.0, due - time.monotonic()))
    began = time.monotonic()
    connection.request("POST", "/v2/models/load/infer", body)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
    times.append(time.monotonic() - began)
    due += 0.05
print(json.dumps(times))
"""


class Host:
    """A booted machine with torchpar and a PyTorch, and the ways to run jobs there."""

    def __init__(self, machine: Machine, python: str, arguments: argparse.Namespace) -> None:
        self.machine, self.python, self.arguments = machine, python, arguments
        self.cpus = sorted(os.sched_getaffinity(0))
        self.cores = len(json.loads(machine.run("torchpar", "topology", "--json").stdout)["cores"])
        self.latencies: dict[str, list[float]] = {}

    def apply(self, kind: str, copies: int, settings: str = "", more: str = "") -> None:
        """Puts as many training services in force, which are started by hand, and others (`more`)."""
        conf = f"[Host]\nReserveCores=0\n{more}"
        for copy in range(copies):
            conf += f"[Train bench{copy}]\nScript={JOB}\nArguments={kind}\nPython={self.python}\nRestart=no\n{settings}"
        self.machine.write("/etc/torchpar.conf", conf)
        self.machine.run("torchpar", "apply", timeout=300)

    def window(self, wait: float, seconds: float) -> float:
        """Has the jobs that are started now measure so many seconds from then on; returns when that is."""
        first = time.monotonic() + wait
        self.machine.write(f"{BENCH}/window", f"{first} {first + seconds}\n")
        return first

    def rates(self, folders: list[str]) -> float:
        """The steps of all jobs in a second, once they have told them."""
        script = 'for folder; do cat "$folder"/result-*.json 2>/dev/null || :; done'

        def read() -> list[float]:
            found = self.machine.sh(script, *folders).stdout
            rates = [json.loads(f"{{{text}")["rate"] for text in found.split("{") if text]
            return rates if len(rates) == len(folders) else []

        return sum(self.machine.wait_until(read, "all jobs have measured", timeout=300))

    def start(self, copies: int) -> list[str]:
        """Starts services by hand; returns their folders."""
        folders = [f"/var/lib/torchpar/train/bench{copy}" for copy in range(copies)]
        self.machine.sh('for folder; do rm -f "$folder"/result-*; done', *folders)
        self.machine.run("systemctl", "start", *(f"torchpar-train@bench{copy}" for copy in range(copies)))
        return folders

    def stop(self) -> None:
        """Ends them all."""
        self.machine.sh("systemctl stop 'torchpar-train@*' 'torchpar-infer@*'; systemctl reset-failed")

    # ---- rows ----

    def together(self, copies: int) -> float:
        """Jobs that are started by hand."""
        first = self.window(self.arguments.warm, self.arguments.seconds)
        folders = self.start(copies)
        sleep_until(first + self.arguments.seconds)
        return self.rates(folders)

    def plain(self, kind: str, copies: int, *, pinned: bool) -> float:
        """Plain processes whose threads somebody has divided, or has pinned too, with the same malloc as torchpar's."""
        first = self.window(self.arguments.warm, self.arguments.seconds)
        folders, started = [f"{BENCH}/{copy}" for copy in range(copies)], []
        for copy, folder in enumerate(folders):
            begin = copy * len(self.cpus) // copies
            own = self.cpus[begin : max(begin + 1, (copy + 1) * len(self.cpus) // copies)]
            malloc = f"LD_PRELOAD={LIB}/libtcmalloc_minimal.so.4 TCMALLOC_RELEASE_RATE=0"
            variables = f"OMP_NUM_THREADS={len(own)} OPENBLAS_NUM_THREADS={len(own)} {malloc}"
            pin = f"taskset -c {','.join(map(str, own))} " if pinned else ""
            command = f"env {variables} {pin}{self.python} {JOB} {kind}"
            self.machine.sh('rm -rf "$1"; mkdir -p "$1"', folder)
            started.append(self.machine.start("sh", "-c", f"cd {folder}; exec {command} >output 2>&1"))
        sleep_until(first + self.arguments.seconds)
        try:
            return self.rates(folders)
        finally:
            for process in started:
                process.wait(timeout=60)

    def alone(self, *, again: bool) -> float:
        """A job from five seconds after the end of another one, or without that."""
        first = self.window(self.arguments.warm + AGAIN_SECONDS, self.arguments.seconds)
        folders = self.start(2 if again else 1)
        sleep_until(first - AGAIN_SECONDS)
        if again:
            self.machine.run("systemctl", "stop", "torchpar-train@bench1")
        sleep_until(first + self.arguments.seconds)
        return self.rates(folders[:1])

    def beside_service(self, kind: str, name: str, lending: tuple[str, str]) -> float:
        """A training job while an inference service runs for half of each period, and its latency in these."""
        half = self.cores // 2
        lend, borrow = lending
        service = f"[Infer load]\nModel={BENCH}/model.pt\nPython={self.python}\nEnabled=yes\nCPUs={half}\n{lend}"
        self.apply(kind, 1, f"Enabled=yes\nCPUs={self.cores - half}\n{borrow}", service)
        period, periods = self.arguments.period, self.arguments.periods
        first = self.window(self.arguments.warm, period * periods)
        folders = self.start(1)
        for number in range(periods):
            begin = first + number * period
            sleep_until(begin)
            self.machine.run("systemctl", "start", INFER, timeout=300)
            told = self.machine.run(self.python, "-c", CLIENT, str(begin + period / 2), timeout=300).stdout
            self.latencies.setdefault(name, []).extend(json.loads(told))
            self.machine.run("systemctl", "stop", INFER, timeout=300)
        sleep_until(first + period * periods)
        return self.rates(folders)


def sleep_until(due: float) -> None:
    """Asking meanwhile would take part of what is measured."""
    time.sleep(max(0.0, due - time.monotonic()))


def compare(host: Host, title: str, rows: Mapping[str, Callable[[], float]], target: float) -> dict[str, list[float]]:
    """Runs all rows as many times, a round after the other, and prints them; the last is held to the best other one."""
    load = os.getloadavg()[0]
    found: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(host.arguments.rounds):
        names = list(rows)
        # Another one begins each round: what the host does now and then does not meet the same row always.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(rows[name]())
            host.stop()
    print(f"\n{title}")
    for name, rates in found.items():
        print(f"  {name:12} {statistics.median(rates):9.2f} steps/s  ({min(rates):.2f} to {max(rates):.2f})")
    *peers, ours = found.values()
    best = max(peers, key=statistics.median)
    ratios = [mine / theirs for mine, theirs in zip(ours, best, strict=True)]
    ratio = statistics.median(ours) / statistics.median(best)
    spread = f"by round {min(ratios):.3f} to {max(ratios):.3f}"
    print(f"  ratio        {ratio:9.3f}  ({spread}; target: at least {target:g})")
    print(f"  load of the host before: {load:.1f}", flush=True)
    return found


def run_part(host: Host, part: str, kind: str, stack: str) -> dict[str, dict[str, list[float]]]:
    """Runs and prints a part for one job; returns what was measured, by title."""
    found = {}
    if part == "share":
        for copies in host.arguments.copies:
            host.apply(kind, copies)
            title = f"{stack}: {kind}, {copies} started by hand"
            rows = {
                "hand-pinned": lambda copies=copies: host.plain(kind, copies, pinned=True),
                "not pinned": lambda copies=copies: host.plain(kind, copies, pinned=False),
                "torchpar": lambda copies=copies: host.together(copies),
            }
            found[title] = compare(host, title, rows, TARGETS["share"])
    elif part == "again":
        host.apply(kind, 2)
        title = f"{stack}: {kind}, {AGAIN_SECONDS:g} s after the end of another"
        both = {"always alone": lambda: host.alone(again=False), "alone again": lambda: host.alone(again=True)}
        found[title] = compare(host, title, both, TARGETS["again"])
    else:
        host.latencies.clear()
        title = f"{stack}: {kind} beside a service that runs half of each {host.arguments.period:g} s"
        both = {
            "fixed halves": lambda: host.beside_service(kind, "fixed halves", ("", "")),
            "lending": lambda: host.beside_service(kind, "lending", ("Lend=yes\n", "Borrow=yes\n")),
        }
        found[title] = compare(host, title, both, TARGETS["lend"])
        p99 = {name: 1000 * statistics.quantiles(times, n=100)[98] for name, times in host.latencies.items()}
        for name, milliseconds in p99.items():
            print(f"  {name:12} p99 of the service's {len(host.latencies[name])} requests {milliseconds:.2f} ms")
        ratio = p99["lending"] / p99["fixed halves"]
        print(f"  ratio        {ratio:9.3f}  (target: at most {TARGETS['p99']:g})", flush=True)
    return found


def bench_stack(stack: str, arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Measures with one PyTorch, that of the wheel or of a release; returns what was measured, by title."""
    suite = wheel_suite() if stack == "wheel" else Suite(stack)
    mounts = {MOUNT: wheel_environment(suite)} if stack == "wheel" else {}
    figures: dict[str, dict[str, list[float]]] = {}
    with Machine(suite, "bench", mounts=mounts) as machine:
        # The wheel brings its own BLAS and needs nothing of Debian's torch.
        machine.install_deb(build_package(suite), recommends=stack != "wheel")
        machine.install("libtcmalloc-minimal4", "util-linux", recommends=False)
        machine.push(Path(__file__).with_name("train_job.py"), JOB)
        python = PYTHON if stack == "wheel" else "/usr/bin/python3"
        machine.run(python, "-c", MODEL, timeout=300)
        host = Host(machine, python, arguments)
        for kind in arguments.jobs:
            for part in arguments.parts:
                figures |= run_part(host, part, kind, stack)
    return figures


def main() -> None:
    """Measures what the arguments name."""
    parser = argparse.ArgumentParser(prog="bench_arbitration", description=(__doc__ or "").partition("\n")[0])
    stacks = ("wheel", *(suite.value for suite in Suite))
    parser.add_argument("--stacks", nargs="+", choices=stacks, default=["wheel", Suite.TRIXIE.value])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--copies", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=float, default=6, help="seconds to start and to warm up (default: 6)")
    parser.add_argument("--seconds", type=float, default=6, help="seconds that are measured (default: 6)")
    parser.add_argument("--period", type=float, default=20, help="of the service, in seconds (default: 20)")
    parser.add_argument("--periods", type=int, default=1, help="in each round (default: 1)")
    parser.add_argument("--json", type=Path, help="write all figures into this file too")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = {}
    for stack in arguments.stacks:
        figures |= bench_stack(stack, arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
