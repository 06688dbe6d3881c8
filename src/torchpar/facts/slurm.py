"""Parses SLURM_* variables, by which Slurm tells a process of its job: which task it is, of how many, on which hosts.

Everything is bounded and must fit together: such variables outlive the job that they are of, in a shell or a screen.
See "OUTPUT ENVIRONMENT VARIABLES" in srun(1), and "show hostnames" in scontrol(1).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.errors import SchedulerError, printable

# What Slurm itself has as the most: of hosts, and of tasks on one of them.
MAX_HOSTS = 2**16
MAX_TASKS = 2**16
_MAX_TEXT = 2**20
_MAX_NAME = 253

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ITEM = re.compile(r"(?:[^,\[\]]|\[[0-9,-]*\])+")
_PART = re.compile(r"\[([0-9,-]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")


@dataclass(frozen=True)
class SlurmTask:
    """This process among the tasks of a job step; alone where a batch script runs it.

    `hosts` are those of the step, and `tasks` how many run on each, in the order of node ids; `node` is this host's id.
    `cpus` counts the CPUs of the allocation on this host, None: Slurm has not said; `gpus` are the numbers of its GPUs
    on this host. `job_tasks` is how many tasks the job asks for, where this is not run by srun.
    """

    job: int
    step: str
    hosts: tuple[str, ...]
    tasks: tuple[int, ...]
    node: int
    rank: int
    local_rank: int
    cpus: int | None = None
    gpus: tuple[int, ...] = ()
    job_tasks: int = 1

    @property
    def world_size(self) -> int:
        """The tasks of the step on all hosts."""
        return sum(self.tasks)

    @property
    def local_world_size(self) -> int:
        """The tasks of the step on this host."""
        return self.tasks[self.node]

    @property
    def name(self) -> str:
        """The step's name, as sacct(1) shows it."""
        return f"{self.job}.{self.step}"


def parse_task(environ: Mapping[str, str]) -> SlurmTask | None:
    """Parses the variables of a task; None where there is no job.

    Raises SchedulerError for what Slurm does not write, and in a shell that has a job (by salloc) without being one of
    its tasks: it is on another host perhaps, and surely not within the allocation.
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    job = _number(environ, "SLURM_JOB_ID", 1, 2**32)
    if "SLURM_PROCID" not in environ:
        raise SchedulerError(
            f"SLURM_JOB_ID={job} is set, but this is no task of that job: start it by srun torchpar run ...; "
            "to run outside of the allocation: env -u SLURM_JOB_ID torchpar run ..."
        )
    cpus = _number(environ, "SLURM_CPUS_ON_NODE", 1, MAX_TASKS) if "SLURM_CPUS_ON_NODE" in environ else None
    gpus = _gpus(environ)
    if "SLURM_STEP_ID" not in environ:
        tasks = _number(environ, "SLURM_NTASKS", 1, 2**32) if "SLURM_NTASKS" in environ else 1
        nodes = _number(environ, "SLURM_NNODES", 1, MAX_HOSTS) if "SLURM_NNODES" in environ else 1
        hosts = expand_hosts(environ, "SLURM_JOB_NODELIST")[:1]
        return SlurmTask(job, "batch", hosts, (1,), 0, 0, 0, cpus, gpus, max(tasks, nodes))
    hosts = expand_hosts(environ, "SLURM_STEP_NODELIST")
    tasks_of = _tasks(environ, "SLURM_STEP_TASKS_PER_NODE", len(hosts))
    node = _number(environ, "SLURM_NODEID", 0, len(hosts) - 1)
    return SlurmTask(
        job,
        str(_number(environ, "SLURM_STEP_ID", 0, 2**32)),
        hosts,
        tasks_of,
        node,
        _number(environ, "SLURM_PROCID", 0, sum(tasks_of) - 1),
        _number(environ, "SLURM_LOCALID", 0, tasks_of[node] - 1),
        cpus,
        gpus,
    )


def expand_hosts(environ: Mapping[str, str], variable: str) -> tuple[str, ...]:
    """Expands a list of hosts such as "n[01-03,7],login", in its order. Raises SchedulerError."""
    text = _text(environ, variable)
    items = _ITEM.findall(text)
    if ",".join(items) != text:
        raise _refuse(variable, text, "is no list of hosts such as n[01-03],login")
    hosts: list[str] = []
    for item in items:
        parts = [_names(variable, text, *part) for part in _PART.findall(item)]
        if len(hosts) + math.prod(map(len, parts)) > MAX_HOSTS:
            raise _refuse(variable, text, f"has more than {MAX_HOSTS} hosts")
        hosts += map("".join, itertools.product(*parts))
    for host in hosts:
        if len(host) > _MAX_NAME or not _NAME.fullmatch(host):
            raise _refuse(variable, text, f"has {printable(host, 60)!r}, which is no host's name")
    return tuple(hosts)


def _names(variable: str, text: str, ranges: str, literal: str) -> list[str]:
    """Lists the texts of one part of a name: of its brackets, or the one that stands there."""
    if literal:
        return [literal]
    numbers: list[str] = []
    for span in ranges.split(","):
        match = _RANGE.fullmatch(span)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not match or first > last or last - first >= MAX_HOSTS or len(numbers) > MAX_HOSTS:
            raise _refuse(variable, text, f"has [{printable(ranges, 60)}], which are no numbers of hosts")
        numbers += (f"{number:0{len(match[1])}}" for number in range(first, last + 1))
    return numbers


def _tasks(environ: Mapping[str, str], variable: str, hosts: int) -> tuple[int, ...]:
    """Parses how many tasks run on each host: "2(x3),1"."""
    text = _text(environ, variable)
    tasks: list[int] = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part)
        number, times = (int(match[1]), int(match[2] or 1)) if match else (0, 0)
        if not 1 <= number <= MAX_TASKS or len(tasks) + times > hosts:
            raise _refuse(variable, text, f"does not say how many tasks run on each of {hosts} hosts")
        tasks += [number] * times
    if len(tasks) != hosts:
        raise _refuse(variable, text, f"is for {len(tasks)} hosts, and the step has {hosts}")
    return tuple(tasks)


def _gpus(environ: Mapping[str, str]) -> tuple[int, ...]:
    """Parses the numbers of the GPUs that the step, or else the job, has on this host."""
    for variable in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environ.get(variable):
            text = _text(environ, variable)
            try:
                return tuple(CpuSet.parse(text))
            except ValueError:
                raise _refuse(variable, text, "is no list of numbers of GPUs") from None
    return ()


def visible_tokens(environ: Mapping[str, str], variable: str) -> tuple[str, ...]:
    """Lists the devices that a variable such as CUDA_VISIBLE_DEVICES names. Raises SchedulerError.

    Slurm names none by "NoDevFiles".
    """
    text = environ.get(variable, "")
    if text in ("", "NoDevFiles"):
        return ()
    if len(text) > _MAX_TEXT or not re.fullmatch(r"[A-Za-z0-9/.:_-]+(,[A-Za-z0-9/.:_-]+)*", text):
        raise _refuse(variable, text, "is no list of devices")
    return tuple(text.split(","))


def _text(environ: Mapping[str, str], variable: str) -> str:
    text = environ.get(variable, "")
    if not 0 < len(text) <= _MAX_TEXT:
        raise _refuse(variable, text, "is not what Slurm writes" if variable in environ else "is not set")
    return text


def _number(environ: Mapping[str, str], variable: str, least: int, most: int) -> int:
    text = environ.get(variable, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
        raise _refuse(variable, text, f"is not a number from {least} to {most}")
    return int(text)


def _refuse(variable: str, text: str, why: str) -> SchedulerError:
    shown = f"{variable}={printable(text, 60)!r}" if text else variable
    return SchedulerError(f"{shown} {why}; nothing is started, as the allocation is not known")
