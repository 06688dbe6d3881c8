"""Compares what runs with what was planned: facts of a unit's processes in, one verdict an item out.

It knows the kernel's words for affinity and memory policy, and reads nothing itself.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchpar.contract import preload
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import printable
from torchpar.contract.given import Given
from torchpar.facts.running import Process, RunningUnit
from torchpar.plan.record import ServiceRecord
from torchpar.units.differing import say_variable

# The kernel's words in /proc/PID/numa_maps (mpol_to_str() in mm/mempolicy.c) for systemd's.
_POLICY_WORDS = {"preferred": "prefer", "bind": "bind", "interleave": "interleave", "local": "local"}

# A quota that stops the processes in more of its periods than this slows the job down.
THROTTLED_SHARE = 0.05

# Of what is wrong with the processes of one unit.
_MOST_TOLD = 10

# CPU time of the busiest thread from which on the others' are compared with it.
SETTLED_SECONDS = 5.0


class Verdict(enum.Enum):
    """The verdict on an item of a running service."""

    OK = "ok"  # as planned
    DRIFT = "drift"  # something else than planned
    UNKNOWN = "unknown"  # cannot be read, for example without root
    NOT_APPLICABLE = "n/a"  # this host, or this torch, has no such thing


@dataclass(frozen=True)
class Item:
    """One compared value, as texts for people. `notice` is a sentence about the service, for what no restart mends."""

    what: str
    verdict: Verdict
    expected: str
    actual: str
    notice: str = ""


def verify(plan: ServiceRecord, running: RunningUnit, given: Given | None = None) -> tuple[Item, ...]:
    """Compares a running unit with its plan; `given` is what torchpard has given it in this run, if anything."""
    return (
        _cpus(plan, running, given),
        _cpuset(plan, running, given),
        _memory_policy(plan, running),
        _allocator(plan, running),
        _environment(plan, running),
        _threads(plan, running, given),
        _throttling(running),
    )


def summary(items: Sequence[Item]) -> Verdict:
    """Returns the verdict of a whole service: drift before unknown before ok."""
    verdicts = {item.verdict for item in items}
    for verdict in (Verdict.DRIFT, Verdict.UNKNOWN):
        if verdict in verdicts:
            return verdict
    return Verdict.OK


def planned_sets(plan: ServiceRecord, given: Given | None, local_rank: int | None = None) -> set[CpuSet]:
    """Returns the sets of CPUs that a thread of the service may have: the service's, a rank's, or what was given.

    With `local_rank` those of that rank alone: the process that says that it is one has bound itself before. What it
    had before that is as good: it may just be moved.
    """
    planned = {plan.cpus} if local_rank is None else set()
    if given:
        parts = given.ranks if local_rank is None else given.ranks[local_rank : local_rank + 1]
        planned |= {*given.had[-1 - len(given.ranks) :], *(part.cpus for part in parts)}
        planned |= {given.cpus} if local_rank is None else set()
    for rank in plan.ranks if local_rank is None else plan.ranks[local_rank : local_rank + 1]:
        own, loaders = rank.cpus, rank.loader_cpus
        # Its loader workers are on their own CPUs or on all that are allowed.
        planned |= {own, loaders or own, own | loaders}
    return planned


def ranks_of(plan: ServiceRecord, running: RunningUnit) -> dict[int, int]:
    """Returns the local rank of each process that says that it is one of several; what a job says may be wrong."""
    if len(plan.ranks) < 2:
        return {}
    return {report.pid: report.local_rank for report in running.ranks if 0 <= report.local_rank < len(plan.ranks)}


def _cpus(plan: ServiceRecord, running: RunningUnit, given: Given | None) -> Item:
    """Compares the CPUs of every thread with those of the service, or of its rank: no more, no less."""
    ranks, lost = ranks_of(plan, running), plan.cpuset - running.online(plan.cpuset)
    wrong: list[str] = []
    unread = False
    for process in running.processes:
        if process.threads is None:
            unread = True
            continue
        planned = {running.online(cpus) for cpus in planned_sets(plan, given, ranks.get(process.pid))}
        strays = Counter(str(cpus) for cpus in map(running.online, process.threads.values()) if cpus not in planned)
        wrong += [
            f"{count} of {len(process.threads)} threads of process {process.pid} on {cpus}"
            for cpus, count in strays.items()
        ]
    count = sum(len(process.threads or ()) for process in running.processes)
    if wrong or lost:
        # Nothing but the CPUs themselves mends that.
        notice = f"has CPUs {plan.cpuset} planned, of which {lost} are offline" if lost else ""
        offline = [f"CPUs {lost} are offline"] if lost else []
        return Item("CPUs", Verdict.DRIFT, str(plan.cpus), _first("; ", [*offline, *wrong]), notice)
    if unread or running.unread:
        return _unread("CPUs", str(plan.cpus), running)
    return Item("CPUs", Verdict.OK, str(plan.cpus), f"threads: {count}, processes: {len(running.processes)}")


def _cpuset(plan: ServiceRecord, running: RunningUnit, given: Given | None) -> Item:
    if running.cpuset is None:
        return Item("cpuset", Verdict.NOT_APPLICABLE, str(plan.cpus), "this host has no cpuset controller for systemd")
    # Beside what it computes on it has the CPUs of its loader workers; and it may just be moved.
    moved = (given.cpus, *given.had) if given and given.is_moved else ()
    planned = {plan.cpuset, *((plan.cpuset - plan.cpus) | cpus for cpus in moved)}
    same = running.cpuset in {running.online(cpus) for cpus in planned}
    return Item("cpuset", Verdict.OK if same else Verdict.DRIFT, str(plan.cpuset), str(running.cpuset))


def _memory_policy(plan: ServiceRecord, running: RunningUnit) -> Item:
    policy, nodes = plan.memory_policy.policy, plan.memory_policy.nodes
    expected = f"{policy} {nodes}".strip()
    if not running.has_numa:
        return Item("memory policy", Verdict.NOT_APPLICABLE, expected, "this kernel has no NUMA policies")
    word = _POLICY_WORDS.get(policy, "default")
    wanted = f"{word}:{nodes}" if nodes else word
    if any(process.policies is None for process in running.processes):
        return _unread("memory policy", expected, running)
    # The library that a mapping belongs to may set its own policy; the process's is that of the most mappings.
    found = [Counter(process.policies).most_common(1)[0][0] for process in running.processes if process.policies]
    others = sorted(set(found) - {wanted} - _policies_of_ranks(plan, word, nodes))
    if others:
        return Item("memory policy", Verdict.DRIFT, expected, _first(" and ", others))
    if running.unread:
        return _unread("memory policy", expected, running)
    return Item("memory policy", Verdict.OK, expected, _locality(plan, running) or wanted)


def _policies_of_ranks(plan: ServiceRecord, word: str, nodes: CpuSet) -> set[str]:
    """Returns the ranks' forms of the service's policy: each has those of its nodes that are near its own CPUs."""
    policies = set()
    for rank in plan.ranks if nodes and len(plan.ranks) > 1 else ():
        near = rank.numa_nodes
        if near:
            near = CpuSet([near.first()]) if word == "prefer" else near & nodes
            policies.add(f"{word}:{near}")
    return policies


def _locality(plan: ServiceRecord, running: RunningUnit) -> str:
    share = local_share(plan, running)
    return "" if share is None else f"{100 * share:.0f} % of its pages on node {_planned_nodes(plan)}"


def local_share(plan: ServiceRecord, running: RunningUnit) -> float | None:
    """Returns the share of a unit's pages that are on its planned nodes; None where that cannot be known."""
    pages: Counter[int] = Counter()
    for process in running.processes:
        pages.update(process.pages or {})
    planned = _planned_nodes(plan)
    if not planned or not pages.total():
        return None
    return sum(count for node, count in pages.items() if node in planned) / pages.total()


def _planned_nodes(plan: ServiceRecord) -> CpuSet:
    return plan.memory_policy.nodes or plan.ranks[0].numa_nodes


def _allocator(plan: ServiceRecord, running: RunningUnit) -> Item:
    """Compares the malloc of the main process, and of each rank where that is torchrun: ranks are what allocates."""
    expected = "glibc" if plan.allocator == "none" else plan.allocator
    ranks = {rank.pid for rank in running.ranks}
    looked_at = [process for process in running.processes if process.pid == running.main_pid or process.pid in ranks]
    all_seen = not running.unread or ranks <= {process.pid for process in running.processes}
    if _main(running) is None or not all_seen or any(process.allocator is None for process in looked_at):
        return _unread("allocator", expected, running)
    found = dict.fromkeys(str(process.allocator) for process in looked_at)
    same = list(found) == [expected]
    why = _without_preload(running)
    notice = why and (
        f"runs with glibc's malloc, since its last start with {expected} preloaded failed ({why}); Allocator=glibc in"
        f" [Train {plan.name}] makes that permanent, see HOW A PRELOAD IS LEFT OUT in torchpar-runtime(7)"
    )
    return Item("allocator", Verdict.OK if same else Verdict.DRIFT, expected, ", ".join(found), "" if same else notice)


def _without_preload(running: RunningUnit) -> str:
    """Returns the reason why the job runs without the malloc that torchpar preloads; "" where it does not."""
    main = _main(running)
    why = (main.environment or {}).get(preload.WITHOUT, "") if main else ""
    return printable(why, 200)


def _environment(plan: ServiceRecord, running: RunningUnit) -> Item:
    planned = plan.environment
    expected = f"{len(planned)} variables"
    main = _main(running)
    if main is None or main.environment is None:
        return _unread("environment", expected, running)
    if not main.environment:
        # A process that names itself anew (setproctitle) takes the room for it; systemd starts none without variables.
        return Item("environment", Verdict.UNKNOWN, expected, "the process has overwritten what /proc shows of it")
    without = {"LD_PRELOAD"} if _without_preload(running) else set()
    actual = {name: main.environment.get(name, "(not set)") for name in planned if name not in without}
    wrong = [line for name in actual if actual[name] != planned[name] for line in _say(name, actual, planned)]
    return Item("environment", Verdict.DRIFT if wrong else Verdict.OK, expected, "; ".join(wrong) or "as planned")


def _say(name: str, actual: Mapping[str, str], planned: Mapping[str, str]) -> list[str]:
    return say_variable(name, actual[name], planned[name]) or [f"{name} is written otherwise"]


def _threads(plan: ServiceRecord, running: RunningUnit, given: Given | None) -> Item:
    """Compares the threads that torch itself tells, once the script has imported it, and those of other processes.

    They tell it once: a service that was moved may have begun with fewer, or with more than planned.
    """
    planned = {rank.local_rank: rank.threads for rank in plan.ranks}
    expected = ", ".join(str(threads) for threads in planned.values())
    pids = {process.pid for process in running.processes}
    if plan.kind == "train" and len(planned) == 1 and (item := _own_ranks(plan, running, expected)):
        return item
    told = {rank.local_rank: rank.threads for rank in running.ranks if rank.pid in pids}
    if not told and not running.unread:
        return Item("threads", Verdict.NOT_APPLICABLE, expected, "the script has not imported torch")
    actual = ", ".join(str(told.get(rank, "?")) for rank in planned)
    most = len(plan.cpuset) if given and given.is_moved else 0
    same = all(
        rank in planned and (threads == planned[rank] or threads <= most) for rank, threads in told.items()
    )
    if same and running.unread:
        return _unread("threads", expected, running)
    return Item("threads", Verdict.OK if same else Verdict.DRIFT, expected, f"torch computes with {actual}")


def _own_ranks(plan: ServiceRecord, running: RunningUnit, expected: str) -> Item | None:
    """Finds processes that multiply the threads of a job of one rank beyond its CPUs: mostly ranks of its script.

    Ranks do the same work, each with several threads that are nearly as busy as the busiest of all. Loader workers and
    most helpers compute with one thread; a process that waits for its ranks, and the threads of gloo, are less busy.
    """
    busiest = max((max(process.cpu_seconds.values(), default=0.0) for process in running.processes), default=0.0)
    if busiest < SETTLED_SECONDS:
        return None
    busy = [sum(2 * seconds >= busiest for seconds in process.cpu_seconds.values()) for process in running.processes]
    threads = [count for count in busy if count > 1]
    cpus = len(plan.cpus)
    if len(threads) < 2 or sum(threads) <= cpus:
        return None
    actual = f"{len(threads)} processes compute with {sum(threads)} threads on {cpus} CPUs"
    notice = (
        f"has {len(threads)} processes that compute with {sum(threads)} threads on {cpus} CPUs:"
        f" Threads={max(1, cpus // len(threads))} divides the CPUs among them; so does Ranks={len(threads)} where they"
        " are ranks, which its script then need not start"
    )
    return Item("threads", Verdict.DRIFT, expected, actual, notice)


def _throttling(running: RunningUnit) -> Item:
    if running.throttled is None:
        return Item("CPU quota", Verdict.NOT_APPLICABLE, "never stopped", "no CPU quota applies to it")
    share = running.throttled / running.periods if running.periods else 0.0
    actual = f"stopped in {running.throttled} of {running.periods} periods" if running.throttled else "never stopped"
    return Item("CPU quota", Verdict.DRIFT if share > THROTTLED_SHARE else Verdict.OK, "never stopped", actual)


def _main(running: RunningUnit) -> Process | None:
    return next((process for process in running.processes if process.pid == running.main_pid), None)


def _unread(what: str, expected: str, running: RunningUnit) -> Item:
    if not running.unread:
        return Item(what, Verdict.UNKNOWN, expected, "cannot be read; this needs root")
    return Item(what, Verdict.UNKNOWN, expected, running.unread, f"cannot be seen as a whole: {running.unread}")


def _first(separator: str, texts: Sequence[str]) -> str:
    """Joins the first of many texts, each of which a job may make as it likes, and says how many more there are."""
    more = f"{separator}{len(texts) - _MOST_TOLD} more" if len(texts) > _MOST_TOLD else ""
    return separator.join(texts[:_MOST_TOLD]) + more
