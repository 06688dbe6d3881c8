"""How planning and reading scale: a table over synthetic hosts, and reading captures against hwloc's lstopo.

    python3 -m tests.benchmarks.bench_plan

Planning is timed from the conf's text to the unit texts. Reading is timed as whole processes, interleaved; the ratio of
medians is printed, as the machine is rarely quiet.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.unit.hosts import exported, make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.facts.topology import Held
from torchpar.plan.plan import make_plan
from torchpar.units.drop_ins import make_units

TREE = Path(__file__).parents[2]
CAPTURES = TREE / "tests/cases/topology/captures"
ROUNDS = 7

# Packages, NUMA nodes in each, services.
SIZES = ((2, 4, 6), (4, 4, 12), (8, 4, 25), (8, 8, 50), (16, 4, 100))


def conf_of(services: int) -> str:
    """Counts, autos and shared services, a third each, all enabled."""
    requests = ("CPUs=auto", "CPUs=4", "CPUs=shared")
    return "[Host]\nReserveCores=0\n" + "".join(
        f"[Train s{i}]\nScript=/s{i}.py\nEnabled=yes\n{requests[i % 3]}\n" for i in range(services)
    )


def bench_scale() -> None:
    """Milliseconds from conf and facts to units, in this process; and `torchpar plan` as a whole for the largest."""
    print("planning (median of", ROUNDS, "runs)")
    print("   CPUs  nodes  services    plan ms   with those in force ms   units ms   µs per CPU × service")
    for packages, nodes, services in SIZES:
        host = make_host(packages=packages, nodes_per_package=nodes, complexes_per_node=2, cores_per_complex=8, smt=2)
        text = conf_of(services)
        planning, again, rendering = [], [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            plan = make_plan(parse_config([ConfFile("/c", text)], host), host)
            middle = time.perf_counter()
            make_units(plan)
            planning.append(middle - start)
            rendering.append(time.perf_counter() - middle)
            # The next apply, on a host that has all but the first service in force.
            held = {s.unit: Held(s.cpus, tuple(g.name for g in s.gpus), s.loader_cpus) for s in plan.services[1:]}
            used = dataclasses.replace(host, in_force=held)
            start = time.perf_counter()
            make_plan(parse_config([ConfFile("/c", text)], used), used)
            again.append(time.perf_counter() - start)
        cpus, taken = len(host.online_cpus), statistics.median(planning)
        print(
            f"  {cpus:5d}  {packages * nodes:5d}  {services:8d}  {taken * 1e3:9.1f}  "
            f"{statistics.median(again) * 1e3:23.1f}  "
            f"{statistics.median(rendering) * 1e3:9.1f}  {taken * 1e6 / cpus / services:12.2f}"
        )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "facts").write_text(exported(used), encoding="utf-8")
        Path(folder, "conf").write_text(text, encoding="utf-8")
        argv = ["plan", "--json", "--facts", f"{folder}/facts", "--config", f"{folder}/conf"]
        whole = [
            timed([sys.executable, "-c", f"from torchpar.cli.main import run; run({argv})"]) for _ in range(ROUNDS)
        ]
    print(f"  `torchpar plan` for the last, the whole process: {statistics.median(whole):.2f} s  (target: below 1)")


def bench_read() -> None:
    """Whole processes that read a capture: `torchpar topology --json`, and lstopo."""
    if not shutil.which("lstopo-no-graphics"):
        print("\nreading: lstopo-no-graphics is not installed (apt install hwloc-nox)")
        return
    print(f"\nreading a captured machine, {ROUNDS} interleaved runs")
    print("  capture                       torchpar ms  reader only ms   lstopo ms   reader / lstopo")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("hwloc-armv7-2cpu", "ocp-xeon-worker-80cpu", "nri-xeon-pmem-6n", "hwloc-power7-256cpu"):
            with tarfile.open(CAPTURES / f"{name}.tar.xz") as archive:
                archive.extraction_filter = lambda member, path: member
                archive.extractall(folder)
            root = f"{folder}/{name}"
            ours, reader, theirs = [], [], []
            whole = f"from torchpar.cli.main import run; run(['topology', '--json', '--root', {root!r}])"
            alone = (
                "import time; from pathlib import Path; from torchpar.host.facts import read_facts; "
                f"t = time.perf_counter(); read_facts(Path({root!r})); print(time.perf_counter() - t)"
            )
            environment = {**os.environ, "HWLOC_FSROOT": root, "HWLOC_COMPONENTS": "linux,stop"}
            for _ in range(ROUNDS):
                ours.append(timed([sys.executable, "-c", whole]))
                printed = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
                reader.append(float(printed.stdout))
                theirs.append(timed(["lstopo-no-graphics", "--of", "xml"], environment))
            median = [statistics.median(values) * 1e3 for values in (ours, reader, theirs)]
            print(
                f"  {name:28s}  {median[0]:11.0f}  {median[1]:14.1f}  {median[2]:10.1f}  {median[1] / median[2]:14.2f}"
            )


def timed(argv: list[str], environment: dict[str, str] | None = None) -> float:
    """Seconds that a process takes."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Both tables."""
    bench_scale()
    bench_read()


if __name__ == "__main__":
    main()
