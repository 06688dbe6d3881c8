"""What torchpar adds: to a daemon-reload with 100 services, and to the start of a job. On a booted Debian.

    make bench    or    python3 -m tests.benchmarks.bench_boot [bookworm|trixie]

Runs are interleaved, and what is printed are medians, their difference or ratio, and the spread (10th to 90th
percentile), as the machine that it runs on is rarely quiet.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

from tests.machines.machine import Machine
from tests.machines.package import build_package
from tests.machines.roots import Suite

ROUNDS = 25
SERVICES = 100
GENERATOR = "/usr/lib/systemd/system-generators/torchpar-generator"

# Prints the milliseconds that a command takes, without those of starting it from outside of the machine.
TIMED = """
import subprocess, sys, time
start = time.monotonic()
subprocess.run(sys.argv[1:], check=True)
print((time.monotonic() - start) * 1000)
"""

# The first line of a script: when it runs, by the clock of systemd's own time stamps.
FIRST_LINE = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC), file=open('first', 'w'))\n"


def spread(values: list[float]) -> str:
    """Median and 10th to 90th percentile."""
    deciles = statistics.quantiles(values, n=10)
    return f"{statistics.median(values):7.2f} ms  ({deciles[0]:.2f} to {deciles[-1]:.2f})"


def interleave(rounds: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Call each in turn, `rounds` times; the first round does not count."""
    values: list[list[float]] = [[] for _ in measures]
    for number in range(rounds + 1):
        for measure, row in zip(measures, values, strict=True):
            value = measure()
            if number:
                row.append(value)
    return values


def bench_reload(machine: Machine) -> None:
    """A daemon-reload with the generator and 100 services, and with the generator masked."""
    conf = "".join(f"[Train s{i}]\nScript=/srv/first.py\nCPUs=shared\nEnabled=yes\n" for i in range(SERVICES))
    machine.write("/etc/torchpar.conf", conf)
    machine.run("torchpar", "apply", timeout=300)
    machine.run("mkdir", "-p", "/etc/systemd/system-generators")
    mask = "/etc/systemd/system-generators/torchpar-generator"

    def timed(*argv: str) -> float:
        return float(machine.run("python3", "-c", TIMED, *argv).stdout)

    def generate() -> float:
        machine.run("mkdir", "/run/bench-generator")
        taken = timed(GENERATOR, "/run/bench-generator")
        machine.run("rm", "-r", "/run/bench-generator")
        return taken

    def nothing() -> float:
        return timed("/bin/true")

    def reload_with() -> float:
        machine.run("rm", "-f", mask)
        return timed("systemctl", "daemon-reload")

    def reload_without() -> float:
        machine.run("ln", "-sf", "/dev/null", mask)
        return timed("systemctl", "daemon-reload")

    alone, empty, with_it, without = interleave(ROUNDS, generate, nothing, reload_with, reload_without)
    machine.run("rm", "-f", mask)
    print(f"\ntorchpar-generator with {SERVICES} services, {ROUNDS} interleaved runs")
    print(f"  the generator alone       {spread(alone)}")
    print(f"  /bin/true                 {spread(empty)}")
    print(f"  daemon-reload with it     {spread(with_it)}")
    print(f"  daemon-reload without it  {spread(without)}")
    added = statistics.median(with_it) - statistics.median(without)
    print(f"  it adds                   {added:7.2f} ms, the loading of its units included  (target: at most 10)")


def bench_start(machine: Machine) -> None:
    """From `systemctl start` to the script's first line: through torchpar, and the same unit with bare python."""
    machine.write("/srv/first.py", FIRST_LINE)
    # So that systemd keeps the time stamps of a unit that has come to its end; the conf itself may not say it.
    stays = "/etc/systemd/system/torchpar-train@.service.d/50-stays.conf"
    machine.write(stays, "[Service]\nRemainAfterExit=yes\n")
    settings = "Script=/srv/first.py\nRestart=no\n"
    machine.write("/etc/torchpar.conf", f"[Train ours]\n{settings}[Train bare]\n{settings}")
    override = "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /srv/first.py\n"
    machine.write("/etc/systemd/system/torchpar-train@bare.service.d/50-bare.conf", override)
    machine.run("torchpar", "apply")

    def start(name: str) -> float:
        unit = f"torchpar-train@{name}.service"
        machine.run("systemctl", "start", unit)
        machine.wait_until(lambda: machine.show(unit, "SubState") == "exited", "the end of the script")
        asked = float(machine.show(unit, "InactiveExitTimestampMonotonic")) / 1e6
        machine.run("systemctl", "stop", unit)
        return (float(machine.read(f"/var/lib/torchpar/train/{name}/first")) - asked) * 1000

    ours, bare = interleave(ROUNDS, lambda: start("ours"), lambda: start("bare"))
    print(f"\nfrom the start of the unit to the script's first line, {ROUNDS} interleaved runs")
    print(f"  torchpar-train@           {spread(ours)}")
    print(f"  the same, bare python     {spread(bare)}")
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"  ratio of medians          {ratio:7.3f}     (target: at most 1.10)")


def main() -> None:
    """Measure on one release, trixie if none is named."""
    suite = Suite(sys.argv[1] if len(sys.argv) > 1 else "trixie")
    with Machine(suite, "bench") as machine:
        machine.install_deb(build_package(suite), recommends=False)
        print(f"\n{suite.release}")
        bench_start(machine)
        bench_reload(machine)


if __name__ == "__main__":
    main()
