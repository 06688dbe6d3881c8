"""Options of the engine, from the plan and the conf; every number has a default that suits a small host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOptions:
    """The options of an engine: models, workers and limits.

    name is the service's, and a single model's. model is a file or a directory of models, handler a Python file; one of
    the two is set. workers counts the computations that run at the same time, each with one thread. backend is "auto",
    "thread" or "process". max_batch counts rows, None: learned. max_queue counts one model's requests that wait for a
    worker, None: a second's worth. own says that no other service uses these CPUs. gpus counts the accelerators that
    the process sees. state is a directory for what is worth keeping over a restart.
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

    def slots(self) -> int:
        """Returns how many computations run at the same time: one for each accelerator, where there are any."""
        return self.gpus or self.workers
