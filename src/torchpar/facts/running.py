"""The processes of a service that runs, as the kernel shows them: immutable values, no reading."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.reports import RankReport


@dataclass(frozen=True)
class Process:
    """One process of a unit; None for what could not be read.

    `threads` are the allowed CPUs by thread, `policies` counts the mappings by the kernel's policy word, `pages` by
    node. `environment` is empty where the process has overwritten it. `cpu_seconds` are the CPU time by thread of a
    process that has loaded torch; empty for any other. `runnable_threads` ran or waited for a CPU.
    """

    pid: int
    threads: Mapping[int, CpuSet] | None
    policies: Mapping[str, int] | None
    pages: Mapping[int, int] | None
    allocator: str | None
    environment: Mapping[str, str] | None
    cpu_seconds: Mapping[int, float] = dataclasses.field(default_factory=dict)
    runnable_threads: int = 0


@dataclass(frozen=True)
class RunningUnit:
    """A unit that runs: its processes, what its ranks say of themselves, its control group.

    `has_numa` is false where the kernel shows no memory policies at all; `throttled` counts the quota's periods in
    which it was stopped, of `periods`; None where there is no such controller. `unread` is why not all of its processes
    could be looked at, "" where all were. `online_cpus` are those of the host, None where nobody knows.
    """

    unit: str
    main_pid: int
    processes: tuple[Process, ...]
    has_numa: bool
    cpuset: CpuSet | None = None
    throttled: int | None = None
    periods: int = 0
    ranks: tuple[RankReport, ...] = ()
    unread: str = ""
    online_cpus: CpuSet | None = None

    def online(self, cpus: CpuSet) -> CpuSet:
        """Returns those of the CPUs that are online."""
        return cpus if self.online_cpus is None else cpus & self.online_cpus
