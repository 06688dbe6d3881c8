"""Reads which CPUs and accelerators the jobs of `torchpar run` have, from whom they can be believed.

Those that are units, systemd tells: root alone can make such a unit. Those without one are processes, which say of
themselves what they like, so they count for their own user alone: nobody takes CPUs from another user by a name or a
variable, and root reads no variable that another user has set.
"""

from __future__ import annotations

import os
import re
import stat

from torchpar.adhoc import plan
from torchpar.contract.cpulist import CpuSet
from torchpar.contract.job import VARIABLE
from torchpar.contract.paths import PROGRAMS
from torchpar.host import systemd
from torchpar.host.proc import ProcReader, TooLateError, TooLongError
from torchpar.host.reading import NotReadableError, Reader
from torchpar.host.threads import ThreadReader

_PROGRAMS = f"{PROGRAMS}/".encode()
_SERVICE = re.compile(rb"/torchpar-(train|infer)@")
_JOB = re.compile(rb"/torchpar-run-")
_USERS = re.compile(rb"^Uid:\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)$", re.MULTILINE)
_MOST = 2**18  # of one process's variables, where the one that is looked for has at most 2**17 bytes
_SECONDS = 5.0


def read_ad_hoc_jobs(proc: str = "/proc") -> tuple[CpuSet, frozenset[str]]:
    """Reads the CPUs and accelerators of the ad-hoc jobs that have a unit, and of those of this user that have none.

    Raises SystemdError.
    """
    found: list[tuple[CpuSet, frozenset[str]]] = []
    told = systemd.is_running()
    if told:
        found += (plan.used_by(systemd.unit_properties(unit)) for unit in systemd.ad_hoc_jobs())
    reader = ProcReader(_SECONDS, proc)

    def read_own() -> None:
        for pid in reader.numbers("."):
            if pid != os.getpid() and _is_own_job(reader, pid, told):
                found.append(_used_by(reader, pid))

    try:
        Reader(_SECONDS).do(read_own)
    except (NotReadableError, TooLateError):
        # What was found counts. Jobs of this user that are missing are this user's alone.
        pass
    return CpuSet.union(cpus for cpus, _ in list(found)), frozenset(gpu for _, gpus in list(found) for gpu in gpus)


def _is_own_job(proc: ProcReader, pid: int, told: bool) -> bool:
    """Says whether the process is an ad-hoc job's that this user alone has started and systemd has not told of.

    The owner of its folder is not enough: that of a process that nobody may look into is root. Nor are its user numbers
    where its program is a setuid one, as sudo: its arguments and variables are still those of whoever called it.
    """
    uid = os.geteuid()
    try:
        if os.stat(f"{proc.root}/{pid}").st_uid != uid:
            return False
        words = proc.start(f"{pid}/cmdline", 4096).split(b"\0")
        if len(words) < 2 or not words[1].startswith(_PROGRAMS):
            return False
        users = _USERS.search(proc.read(f"{pid}/status"))
        if not users or {int(number) for number in users.groups()} != {uid}:
            return False
        if os.stat(f"{proc.root}/{pid}/exe").st_mode & (stat.S_ISUID | stat.S_ISGID):
            return False
        group = proc.read(f"{pid}/cgroup")
        return not _SERVICE.search(group) and not (told and _JOB.search(group))
    except (OSError, TooLongError):
        return False


def _used_by(proc: ProcReader, pid: int) -> tuple[CpuSet, frozenset[str]]:
    """Reads the CPUs that such a process may run on, and the accelerators in its job's variable."""
    try:
        cpus = CpuSet.union(ThreadReader(proc).read(pid).values())
        variables = proc.start(f"{pid}/environ", _MOST).split(b"\0")
    except (OSError, TooLongError):
        return CpuSet(), frozenset()
    prefix = f"{VARIABLE}=".encode()
    told = next((os.fsdecode(variable[len(prefix) :]) for variable in variables if variable.startswith(prefix)), "")
    return cpus, plan.accelerators_of(told)
