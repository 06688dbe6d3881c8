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
    """What this host's plan says of the service that this process belongs to; None outside a torchpar service.

    Raises JobSettingsError when the unit's variable is damaged.
    """
    import os

    from torchpar.contract.job import parse_job_environment

    return parse_job_environment(os.environ)


def stop_requested() -> bool:
    """Whether the script is asked to save and end: True in all ranks at the same call, and from then on.

    To be called once a step, equally often in every rank. From the first call on `systemctl stop` asks, and ends the
    job only when CheckpointGrace= is over.
    """
    from torchpar.runtime.stop import request

    return request.seen_by_all()


def init(backend: "str | None" = None) -> "Job":
    """The process group, this rank's devices, and `wrap(model)`: gloo on CPUs, nccl where the rank has accelerators.

    A process that is alone gets the same without a group, so one script runs either way.
    """
    from torchpar.runtime.job import init

    return init(backend)
