"""Checks how the kernel is set: what it does with memory, with the CPUs' speed, and what it lets tools see."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from torchpar.doctor.check import check
from torchpar.doctor.conditions import BOUND, CPU_FREQUENCY, SERVICES, SEVERAL_NODES, THERMAL, TRAINING
from torchpar.doctor.finding import Finding, not_applicable, note, ok, unknown, warn
from torchpar.doctor.host import Host
from torchpar.host.sysfs import Tree

_CPUS = "sys/devices/system/cpu"
# Of the time since the start, that a processor was held back by its heat.
_HOT = 0.001


def _sysctl(name: str, value: int) -> str:
    """Makes the line that sets a variable of sysctl(8), for now and for each boot."""
    path = f"/etc/sysctl.d/60-torchpar-{name}.conf"
    return f"echo '{name} = {value}' >{path} && /usr/lib/systemd/systemd-sysctl {path}"


@check(
    "kern.numa_balancing",
    passed="the kernel leaves the memory of bound services where it is",
    where=BOUND,
    source="deepseek-ai/DeepEP#624: task_numa_work held ranks for up to 31 ms",
)
def numa_balancing(host: Host) -> Iterator[Finding]:
    """Finds automatic NUMA balancing on: it unmaps pages to see who uses them, and bound ones it cannot move."""
    if host.tree.number("proc/sys/kernel/numa_balancing"):
        yield warn(
            "the kernel looks for better places for memory that is bound where it is, and stops its threads for that",
            "/proc/sys/kernel/numa_balancing is not 0, and a service has NUMAPolicy=bind",
            "",
            _sysctl("kernel.numa_balancing", 0),
        )


@check(
    "kern.zone_reclaim",
    passed="a NUMA node that is full takes memory of another before it drops its page cache",
    where=SEVERAL_NODES,
    source="Documentation/admin-guide/sysctl/vm.rst: it is for workloads that are split by node, and off by default",
)
def zone_reclaim(host: Host) -> Iterator[Finding]:
    """Finds zone reclaim on, which throws away a data set's page cache while other nodes have room."""
    if mode := host.tree.number("proc/sys/vm/zone_reclaim_mode"):
        yield warn(
            "a full NUMA node drops data that was read from disk while other nodes have room",
            f"/proc/sys/vm/zone_reclaim_mode is {mode}",
            "",
            _sysctl("vm.zone_reclaim_mode", 0),
        )


@check(
    "kern.overcommit",
    passed="loader workers can be forked from a large process",
    where=TRAINING,
    source="Documentation/mm/overcommit-accounting.rst; fork(2): ENOMEM",
)
def overcommit(host: Host) -> Iterator[Finding]:
    """Finds strict accounting of memory: a forked loader worker counts as much as the process that it comes from."""
    if host.tree.number("proc/sys/vm/overcommit_memory") == 2:
        yield warn(
            'a loader worker counts for as much memory as its parent, and its fork may fail: "Cannot allocate memory"',
            "/proc/sys/vm/overcommit_memory is 2",
            "",
            _sysctl("vm.overcommit_memory", 0),
        )


@check(
    "kern.thp",
    passed="processes can have large pages",
    where=SERVICES,
    source="Documentation/admin-guide/mm/transhuge.rst; ik_llama.cpp#278 and #2010: 2 times better or 5 times worse",
)
def transparent_huge_pages(host: Host) -> Iterator[Finding]:
    """Finds transparent huge pages switched off for all."""
    text = host.tree.text("sys/kernel/mm/transparent_hugepage/enabled")
    chosen = _chosen(text)
    if chosen is None:
        yield not_applicable("this kernel has no transparent huge pages")
        return
    evidence = f"/sys/kernel/mm/transparent_hugepage/enabled: {chosen}"
    if chosen == "never":
        yield note(
            "no process can have large pages, not even one that asks for them; jobs with large tensors may be slower",
            evidence,
            "measure both: echo madvise >/sys/kernel/mm/transparent_hugepage/enabled",
        )
    else:
        yield ok(f"large pages: {chosen}", evidence)


@check(
    "kern.governor",
    passed="CPUs run as fast as there is work",
    where=CPU_FREQUENCY,
    source="Documentation/admin-guide/pm/cpufreq.rst and intel_pstate.rst, amd-pstate.rst",
)
def governor(host: Host) -> Iterator[Finding]:
    """Finds a governor, or a preference for saving energy, that keeps CPUs at a low frequency."""
    tree, slow, saving = host.tree, [], []
    driver = tree.word(f"{_CPUS}/cpu0/cpufreq/scaling_driver") or "unknown"
    for cpu in host.facts.online_cpus:
        folder = f"{_CPUS}/cpu{cpu}/cpufreq"
        # With these drivers powersave is the name of the one that follows the load.
        if tree.text(f"{folder}/scaling_governor") == "powersave" and driver not in _FOLLOWING:
            slow.append(cpu)
        if tree.text(f"{folder}/energy_performance_preference") == "power":
            saving.append(cpu)
    if slow:
        yield warn(
            f"the governor powersave keeps {len(slow)} CPUs at their lowest frequency",
            f"scaling_governor of CPU {slow[0]}: powersave, with the driver {driver}",
            "",
            *_write_all("scaling_governor", "performance"),
        )
    if saving:
        yield warn(
            f"{len(saving)} CPUs save energy rather than compute",
            f"energy_performance_preference of CPU {saving[0]}: power",
            "",
            *_write_all("energy_performance_preference", "balance_performance"),
        )


_FOLLOWING = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")


def _write_all(name: str, value: str) -> tuple[str, ...]:
    """Makes the lines that give all CPUs a value, now and at each boot; see tmpfiles.d(5)."""
    line = f"w /{_CPUS}/cpu*/cpufreq/{name} - - - - {value}"
    path = f"/etc/tmpfiles.d/torchpar-{name}.conf"
    return (f"echo '{line}' >{path} && systemd-tmpfiles --create {path}",)


@check(
    "kern.turbo",
    passed="CPUs may run above their base frequency",
    where=CPU_FREQUENCY,
    source="Documentation/admin-guide/pm/intel_pstate.rst (no_turbo), cpufreq.rst (boost)",
)
def turbo(host: Host) -> Iterator[Finding]:
    """Finds the higher frequencies switched off."""
    for path, off in (("intel_pstate/no_turbo", 1), ("cpufreq/boost", 0)):
        if host.tree.number(f"{_CPUS}/{path}") == off:
            yield note(
                "CPUs run at their base frequency at the most; unless wanted for steady figures, it costs speed",
                f"/{_CPUS}/{path} is {off}",
                f"echo {1 - off} >/{_CPUS}/{path}",
            )


@check(
    "kern.thermal",
    passed="no processor was held back by its heat for a noticeable time",
    where=THERMAL,
    source="Documentation/ABI/testing/sysfs-devices-system-cpu: thermal_throttle",
)
def thermal(host: Host) -> Iterator[Finding]:
    """Finds processors that heat has held back for more than a thousandth of the time since the start."""
    uptime = _uptime(host.tree)
    if uptime is None:
        yield unknown("the time since the start cannot be read", "mount /proc")
        return
    worst, where = 0, 0
    for cpu in host.facts.online_cpus:
        for name in ("core", "package"):
            path = f"{_CPUS}/cpu{cpu}/thermal_throttle/{name}_throttle_total_time_ms"
            # Of a processor that has none, the file is not there; no doubt is worth keeping.
            held = host.tree.number(path) or 0
            worst, where = max((worst, where), (held, cpu))
    if worst > _HOT * uptime * 1000:
        yield warn(
            f"heat has held the processor of CPU {where} back for {worst / 1000:.0f} s of {uptime:.0f} s",
            f"/{_CPUS}/cpu{where}/thermal_throttle: {worst} ms",
            "look at the cooling: fans, dust, the temperature of the room; and at the power limits of the firmware",
        )


def _uptime(tree: Tree) -> float | None:
    first = (tree.text("proc/uptime") or "").partition(" ")[0]
    return float(first) if fnmatch.fnmatch(first, "[0-9]*.[0-9]*") and first.replace(".", "", 1).isdecimal() else None


@check(
    "kern.ptrace",
    passed="tools such as py-spy can look into a job of the same user, or as root",
    where=SERVICES,
    source="Documentation/admin-guide/LSM/Yama.rst; benfred/py-spy#408",
)
def ptrace(host: Host) -> Iterator[Finding]:
    """Finds ptrace() closed to all users, or to root too."""
    scope = host.tree.number("proc/sys/kernel/yama/ptrace_scope")
    if scope is not None and scope >= 2:
        whom = "nobody, not even root," if scope == 3 else "only root"
        yield note(
            f"{whom} can look into a job that hangs, as py-spy and gdb do",
            f"/proc/sys/kernel/yama/ptrace_scope is {scope}",
            "restart the host with kernel.yama.ptrace_scope = 1 in /etc/sysctl.d, if that is wanted"
            if scope == 3
            else "as root: py-spy dump --pid PID",
        )


def _chosen(text: str | None) -> str | None:
    """Returns the word in brackets of "always [madvise] never"."""
    return next((word[1:-1] for word in (text or "").split() if word.startswith("[")), None)
