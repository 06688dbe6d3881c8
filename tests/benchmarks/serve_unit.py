"""Starts torchpar's server as its unit does: the socket from outside, the settings in a variable.

    python3 serve_unit.py PORT MODEL THREADS PROCESSES [GRPC-ADDRESS]

PROCESSES is a number, or auto.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from torchpar.contract.cpulist import CpuSet
from torchpar.contract.job import JobSettings, RankSettings, ServeSettings, job_environment
from torchpar.serve.sockets import FIRST

SERVE = Path(__file__).parents[2] / "src/torchpar/serve/serve.py"


def main(port: str, model: str, threads: str, processes: str, *grpc: str) -> None:
    """Becomes the server."""
    rank = RankSettings(0, str(CpuSet(os.sched_getaffinity(0))), "", int(threads), 0, ())
    serve = ServeSettings(
        model=model,
        handler=None,
        listen=(),
        grpc=grpc,
        workers=None,
        backend="auto",
        max_batch=None,
        max_queue=None,
        drain_timeout=5,
        own=True,
        processes=None if processes == "auto" else int(processes),
    )
    job = JobSettings("torchpar-infer@m.service", 1, None, (rank,), serve=serve)
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=4096)
    os.dup2(listener.fileno(), FIRST)
    os.set_inheritable(FIRST, True)  # where it was that number already
    environment = {**os.environ, **job_environment(job), "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    os.execve(sys.executable, [sys.executable, str(SERVE)], environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
