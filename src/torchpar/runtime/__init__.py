"""What a training script can ask torchpar for: `import torchpar.runtime`, under any Python from 3.9 on.

A script needs none of it to be placed. Importing this must cost next to nothing: the launcher does it at every start.
"""

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from torchpar.environment import JobSettings

__all__ = ["plan"]


def plan() -> "JobSettings | None":
    """What this host's plan says of the service that this process belongs to; None outside a torchpar service.

    Raises JobSettingsError when the unit's variable is damaged.
    """
    import os

    from torchpar.environment import parse_job_environment

    return parse_job_environment(os.environ)
