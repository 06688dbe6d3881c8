"""Answers a training script: `import torchpar.runtime`, under any Python from 3.9 on.

A script needs none of it to be placed. Importing this must cost next to nothing: the launcher does it at every start.
See torchpar-runtime(7).
"""

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from torchpar.contract.job import JobSettings
    from torchpar.runtime.job import Job

__all__ = ["init", "plan", "stop_requested"]


def plan() -> "JobSettings | None":
    """Returns this host's plan of the service that this process belongs to; None outside a torchpar service.

    Raises JobSettingsError when the unit's variable is damaged.
    """
    import os

    from torchpar.contract.job import parse_job_environment

    return parse_job_environment(os.environ)


def stop_requested() -> bool:
    """Says whether the script is asked to save and end: True in all ranks at the same call, and from then on.

    To be called once a step, equally often in every rank. From the first call on `systemctl stop` asks, and ends the
    job only when CheckpointGrace= is over.
    """
    from torchpar.runtime.stop import request

    return request.seen_by_all()


def init(backend: "str | None" = None) -> "Job":
    """Joins the process group, and takes this rank's devices; the Job that it returns has `wrap(model)`.

    `backend` is torch.distributed's; None is nccl where the rank has accelerators, gloo on CPUs. A process that is
    alone gets the same without a group, so one script runs either way. Raises RuntimeError where torch sees some of the
    planned accelerators and not all.
    """
    from torchpar.runtime.job import init

    return init(backend)
