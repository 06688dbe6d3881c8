"""Errors that a request can end with instead of an answer, and those of models that cannot be served."""

from __future__ import annotations

from enum import Enum


class Lasting(Enum):
    """The reasons for which a request failed and others fail as well."""

    OUTPUT = "output"  # what it returns cannot be sent, or is not what is declared: a complex tensor
    DEVICE = "device"  # torch has not the device that is in the file: "cuda:0" on a host without one
    OPERATOR = "operator"  # torch has no code for an operator here: one that is for accelerators only
    KIND = "kind"  # a rank or datatype that an operator does not take: FP32 for an embedding's indices
    NAME = "name"  # an input that is not described: a handler looks it up in its batch
    SIZE = "size"  # a size that the weights do not have: 4 columns for a linear layer of 5


class ServeError(Exception):
    """A request that is not answered.

    status is HTTP's: 400 tensors that do not fit the model, 404 no such model or version, 413 more rows than the model
    takes, 499 cancelled, 500 the model failed, 503 queue full, unloading, or the worker died, 504 deadline passed.
    retry_after is in seconds, for 503 alone. lasting is known of some that a model itself caused.
    """

    lasting: Lasting | None = None

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


def text_of(error: BaseException) -> str:
    """Returns an error's text, also where the error's own code fails to make one."""
    try:
        return str(error)
    except Exception:
        return "its text cannot be made"


class ModelError(Exception):
    """A model that cannot be loaded; the message names the file and what to do."""


class OtherFilesError(ModelError):
    """The files on disk are not those that the service's other processes serve."""


class StartError(Exception):
    """The server cannot start, and trying again would not help: the message says what to mend."""


class OutputError(TypeError):
    """A model's outputs cannot be sent, or are not as described: no request would be answered."""


class NoInputError(KeyError):
    """A handler looks for an input that its batch does not have."""

    def __str__(self) -> str:
        return str(self.args[0])


class CannotAnswer(Exception):
    """A model that was loaded, and that would answer no request; the message says why."""
