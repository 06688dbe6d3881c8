"""Computes batches, in threads or in processes.

The pool calls it from one of its compute threads and says which: a slot is the number of one, and of what computes
for it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from torchpar.serve.engine.columns import Column, Computed
from torchpar.serve.engine.failures import failure
from torchpar.serve.errors import ServeError
from torchpar.serve.models.identity import Files
from torchpar.serve.models.program import Program
from torchpar.serve.models.values import tensors_of, value_of
from torchpar.serve.models.weights import Weights
from torchpar.serve.tensors import Tensor, TensorSpec


class Runner(ABC):
    """One loaded version of a model, and the means to run it in several slots at the same time.

    example holds one batch that the model itself names as typical, None if it does not. guessed says that nothing
    declares the inputs' shapes. files are those that were read beside the model's own.
    """

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int | None
    example: list[Tensor] | None = None
    guessed = False
    files: Files = {}
    seeds = ""  # what in the program seeds the random numbers of its whole process
    counts = ""  # where it computes with the number of rows
    quiet = False  # what a handler raises now is not for the log
    in_service = False  # requests come; before, it is being loaded
    kind = "KIND_CPU"

    @abstractmethod
    def compute(self, slot: int, columns: Sequence[Column], team: int = 1) -> Computed:
        """Runs a batch, with `team` threads where the runner can.

        Raises ServeError: 500 when the model fails, 503 when what computed has died.
        """

    @abstractmethod
    def mend(self, slot: int) -> None:
        """Brings back what died in a slot, if anything did."""

    @abstractmethod
    def writes(self) -> str:
        """Names what the program keeps and writes to when it runs; "" if nothing is known."""

    @abstractmethod
    def keep_one(self) -> None:
        """Computes with one copy of the program in all slots; the caller never computes in two slots at once."""

    @abstractmethod
    def renew(self) -> None:
        """Puts a program that has not run yet in the place of what slot 0 has computed with."""

    def is_steady(self) -> bool:
        """Says whether any thread can compute, and every row takes as long, whatever is in it."""
        return False

    def weights(self) -> Weights | None:
        """Returns the weights that other processes could share; None where processes of its own have them."""
        return None

    def adopt(self, weights: Weights, fd: int) -> None:
        """Computes with what is in shared memory in place of its own weights, where it is the same. Raises OSError."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Closes it: it computes nothing any more."""


class ThreadRunner(Runner):
    """The pool's own threads compute; they share the weights, and run at the same time where the program lets go of
    Python's lock.
    """

    def __init__(self, load: Callable[[], Program]) -> None:
        self._load = load
        self._program = program = load()
        self.platform = program.platform
        self.inputs = program.inputs
        self.outputs = program.outputs
        self.max_batch = program.max_batch
        self.guessed = program.guessed
        self.example = program.example
        self.files = program.files
        self.seeds = program.seeds
        self.counts = program.counts

    def compute(self, slot: int, columns: Sequence[Column], team: int = 1) -> Computed:
        """See Runner."""
        values = [value_of(column) for column in columns]
        ready = time.monotonic()
        try:
            if team > 1:
                # OpenMP keeps this number for each thread by itself: the other workers stay at one.
                torch.set_num_threads(team)
            results = self._program.compute(values)
            end = time.monotonic()
            return Computed(tensors_of(results), ready, end)
        except ServeError:
            raise
        except SystemExit as error:  # of a handler: in a thread it ends nothing
            raise ServeError(503, "the model asks for the end of the process that computes it") from error
        except BaseException as error:  # the model's own code: whatever it raises is the answer
            raise failure(error, own_code=self._program.platform == "python") from error
        finally:
            if team > 1:
                torch.set_num_threads(1)

    def is_steady(self) -> bool:
        """See Runner."""
        sizes = [size for spec in self.inputs for size in spec.shape[1:]]
        return self._program.steady and not self.guessed and -1 not in sizes

    def weights(self) -> Weights | None:
        """See Runner."""
        return Weights(self._program.tensors())

    def adopt(self, weights: Weights, fd: int) -> None:
        """See Runner."""
        if weights.adopt(fd):
            self._program.moved()

    def mend(self, slot: int) -> None:
        """Nothing to do: a thread does not die."""

    def writes(self) -> str:
        """See Runner."""
        return self._program.writes()

    def keep_one(self) -> None:
        """Nothing to do: it is the only one."""

    def renew(self) -> None:
        """See Runner. What has written nothing is as it was loaded, and warm."""
        if self._program.writes():
            del self._program  # before there is another
            self._program = self._load()

    def close(self) -> None:
        """Nothing to do: the threads are the pool's."""
