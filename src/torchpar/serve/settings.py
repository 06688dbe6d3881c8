"""What the engine is told of the plan and the conf; every number has a default that suits a small host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """model is a file or a directory of models, handler a Python file; one of the two is set.

    name is the service's, and a single model's. workers counts the computations that run at the same time, each with
    one thread. backend is "auto", "thread" or "process". max_batch counts rows, None: learned. max_queue counts
    requests that wait for a worker, None: some seconds' worth, see queue.py. own says that no other service uses these
    CPUs. gpus counts accelerators that the process sees. state is a directory for what is worth keeping over a restart.
    """

    name: str
    model: str | None = None
    handler: str | None = None
    workers: int = 1
    backend: str = "auto"
    max_batch: int | None = None
    max_queue: int | None = None
    own: bool = False
    gpus: int = 0
    state: str | None = None
