"""How the processes of a job find each other: torchrun's flags and the environment that the network needs."""

from __future__ import annotations

from torchpar.environment import JobSettings


def arguments(settings: JobSettings) -> tuple[list[str], dict[str, str]]:
    """torchrun's flags for the rendezvous, as current versions spell them, and variables that are set unless they are.

    On one host the agent listens on a free port of the loopback interface, so that jobs do not meet: --standalone would
    do that too, but takes port 29400 in torch 1.13.
    """
    flags = [
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        "--rdzv-conf=is_host=1",
        f"--rdzv-id={settings.service}",
    ]
    # gloo would else look up the host's own name, which leads anywhere or nowhere.
    return flags, {"GLOO_SOCKET_IFNAME": "lo"}
