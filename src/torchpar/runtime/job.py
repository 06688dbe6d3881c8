"""Starts a distributed script: its process group, its devices, its model wrapped."""

from __future__ import annotations

import os
from typing import Any

from torchpar.contract.job import JobSettings, parse_job_environment
from torchpar.contract.journal import Priority, say
from torchpar.runtime import accelerator


class Job:
    """This process among those of the job.

    `rank` of `world_size` counts over all hosts, `local_rank` on this one. `devices` are this process's own
    torch.devices: its accelerators, or the CPU; `device` is the first.
    """

    def __init__(self, torch: Any, settings: JobSettings | None) -> None:
        """Reads what torchrun has set; without torchrun a process is alone."""
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        numbers = device_numbers(settings, self.local_rank, accelerator.visible(torch))
        self.devices = tuple(torch.device("cuda", number) for number in numbers) or (torch.device("cpu"),)
        self.device = self.devices[0]

    def wrap(self, model: Any, **arguments: Any) -> Any:
        """Moves the model to this process's device, and into DistributedDataParallel where there are other ranks.

        A model for several devices of one rank (GPUsPerRank=) that is on them already stays there. The arguments are
        those of DistributedDataParallel.
        """
        on_one = len(self.devices) == 1 or len({parameter.device for parameter in model.parameters()}) <= 1
        if on_one:
            model = model.to(self.device)
        if self.world_size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        if self.device.type == "cuda" and on_one:
            arguments.setdefault("device_ids", [self.device.index])
        return DistributedDataParallel(model, **arguments)


def init(backend: str | None = None) -> Job:
    """Joins the process group, unless the process is alone or has joined already, and takes this rank's devices.

    The backend is nccl where the rank has accelerators, gloo on CPUs. Raises RuntimeError where torch sees some of the
    planned accelerators and not all: ranks with and without one would wait for each other for ever.
    """
    import torch

    job = Job(torch, parse_job_environment(os.environ))
    accelerator.take(torch, job.device)
    if job.world_size > 1:
        import torch.distributed

        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend or ("nccl" if job.device.type == "cuda" else "gloo"))
    return job


def device_numbers(settings: JobSettings | None, local_rank: int, visible: int) -> range:
    """Returns the numbers of this rank's accelerators among the service's: the ranks' own follow one another.

    Without a plan one for each rank, as is usual with torchrun. None where none is visible, as with a torch for CPUs.
    Raises RuntimeError where some are and some are not.
    """
    counts = [len(rank.gpus) for rank in settings.ranks] if settings else [1] * (local_rank + 1)
    if len(counts) <= local_rank:
        return range(0)
    planned = sum(counts)
    if settings and planned and not visible:
        say(f"{planned} accelerators are planned and torch sees none: the CPU computes", Priority.WARNING)
    if settings and 0 < visible < planned:
        raise RuntimeError(f"{planned} accelerators are planned for this job on this host, and torch sees {visible}")
    first = sum(counts[:local_rank])
    last = first + counts[local_rank]
    return range(first, last) if last <= visible else range(0)
