"""Imports what a serving process needs, once for all processes of a place, and forks them."""

from __future__ import annotations

import gc
import os
import socket

from torchpar.contract.job import JobSettings, RankSettings
from torchpar.serve.process import serve
from torchpar.serve.supervisor.gauge import Gauge


def fork_processes(settings: JobSettings, rank: RankSettings, door: socket.socket) -> int:
    """Forks a process for each message with two descriptors, its channel and its gauge, until the socket is closed.

    Returns the exit status, in each of the forks too.
    """
    # All of it, or each fork would do it for itself. None of these starts a thread that a fork would miss: OpenBLAS
    # ends its own before a fork, and has them again when it needs them.
    import torchpar.serve.engine.shared
    import torchpar.serve.front
    import torchpar.serve.request_cost  # noqa: F401
    from torchpar.serve.runners.seeds import draw_anew

    # A look for garbage would write to every object, and no page would be shared.
    gc.collect()
    gc.freeze()
    while True:
        _, files, _, _ = socket.recv_fds(door, 16, 2)
        if len(files) < 2:
            return 0
        if os.fork() == 0:
            # Nobody waits for it here: the service's first process does, which is the next parent.
            if os.fork():
                os._exit(0)
            door.close()
            draw_anew()
            return serve(settings, rank, socket.socket(fileno=files[0]), Gauge(files[1]))
        os.wait()
        for each in files:
            os.close(each)
