"""How planning a fleet scales: a table over 10, 100, 1,000 and 10,000 hosts with 20 services each.

    python3 -m tests.benchmarks.bench_fleet [--most HOSTS]

CPU seconds are those of all processes together: on a host with nothing else to do it takes them by its number of CPUs.
Hosts are of eight kinds, all different (each has other UUIDs and another amount of memory) or all alike within their
kind. Each is in force with an older conf, so that there is something to compare. Memory is the largest of any process.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.unit.hosts import exported, make_host
from torchpar.conf.parse import parse_config
from torchpar.conf.syntax import ConfFile
from torchpar.contract.typed_json import Text
from torchpar.facts.topology import HostFacts
from torchpar.plan.export import UnitsInForce, Versions
from torchpar.plan.plan import make_plan
from torchpar.units.drop_ins import make_units

SIZES = (10, 100, 1_000, 10_000)
SERVICES = 20

# Packages, NUMA nodes in each, SMT, GPUs.
KINDS = ((1, 1, 1, 0), (1, 1, 2, 0), (2, 1, 2, 0), (2, 2, 2, 0), (2, 2, 2, 4), (2, 4, 2, 8), (2, 1, 1, 2), (1, 4, 2, 0))


def conf_of(threads: int = 0) -> str:
    """Training and inference services in turns."""
    own = f"Threads={threads}\n" if threads else ""
    return "".join(
        f"[Infer s{i}]\nModel=/srv/{i}.pt\nListen=127.0.0.1:{8000 + i}\nEnabled=yes\nGPUs=none\n{own}"
        if i % 2
        else f"[Train s{i}]\nScript=/srv/{i}.py\nEnabled=yes\nGPUs=none\n{own}"
        for i in range(SERVICES)
    )


def make_hosts(count: int, *, alike: bool) -> Iterator[tuple[str, HostFacts]]:
    """Makes hosts of all kinds in turns."""
    for number in range(count):
        packages, nodes, smt, gpus = KINDS[number % len(KINDS)]
        host = make_host(
            packages=packages,
            nodes_per_package=nodes,
            complexes_per_node=2,
            cores_per_complex=12,
            smt=smt,
            gpu_nodes=tuple(gpu % (packages * nodes) for gpu in range(gpus)),
        )
        if not alike:
            uuids = (dataclasses.replace(gpu, uuid=f"GPU-{number:08x}-{i}") for i, gpu in enumerate(host.gpus))
            host = dataclasses.replace(host, gpus=tuple(uuids), memory_bytes=(host.memory_bytes or 0) + 4096 * number)
        name = f"node{number:05d}"
        yield name, dataclasses.replace(host, hostname=name)


def write_facts(folder: Path, count: int, *, alike: bool) -> None:
    """Writes the facts of so many hosts."""
    old = [ConfFile("/etc/torchpar.conf", conf_of(threads=1))]
    units = {}
    for number, (name, host) in enumerate(make_hosts(count, alike=alike)):
        kind = number % len(KINDS)
        if kind not in units:
            made = make_units(make_plan(parse_config(old, host), host))
            files, links = ({path: Text(text) for path, text in each.items()} for each in (made.files, made.links))
            units[kind] = UnitsInForce(1, files, links, ("torchpar-train@s0.service",))
        versions = Versions({"torchpar": "0.1.0"}, {"/usr/bin/python3": "2.6.0"}, "openblas-openmp")
        (folder / f"{name}.json").write_text(exported(host, in_force=units[kind], versions=versions), encoding="utf-8")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=SIZES[-1], help="the largest fleet")
    most = parser.parse_args().most
    print(f"torchpar fleet, {SERVICES} services on each host, on {len(os.sched_getaffinity(0))} CPUs")
    print("   hosts            command   seconds     CPU s   CPU ms per host   MiB   output MiB")
    for alike in (False, True):
        for count in (size for size in SIZES if size <= most):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "facts").mkdir()
                write_facts(folder / "facts", count, alike=alike)
                (folder / "torchpar.conf").write_text(conf_of(), encoding="utf-8")
                for command in ("plan", "report") if count == 1000 or not alike else ("plan",):
                    measure(folder, command, count, alike=alike)


def measure(folder: Path, command: str, count: int, *, alike: bool) -> None:
    """Runs one command as its users do, and prints a line of the table."""
    run = "from torchpar.cli.main import main; main()"
    argv = [sys.executable, "-c", run, "fleet", command, "--facts", f"{folder}/facts", "--config", str(folder)]
    with (folder / "out").open("wb") as out:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        taken = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) not in (0, 2):
        sys.exit(f"{command} ended with {status}")
    # Both are of it and of all processes that it has waited for (getrusage(2)): their time, and the largest.
    cpu, size = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    written = (folder / "out").stat().st_size / 2**20
    kind = "alike" if alike else "different"
    print(
        f"  {count:6d}  {kind:>9s} {command:>6s}  {taken:8.1f}  {cpu:8.1f}  {cpu * 1e3 / count:15.1f}  {size:4.0f}  "
        f"{written:11.1f}"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
