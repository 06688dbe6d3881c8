"""What a request can end with instead of an answer, and why a model cannot be served."""

from __future__ import annotations


class ServeError(Exception):
    """A request that is not answered.

    status is HTTP's: 400 tensors that do not fit the model, 404 no such model or version, 413 more rows than the model
    takes, 499 cancelled, 500 the model failed, 503 queue full, unloading, or the worker died, 504 deadline passed.
    retry_after is in seconds, for 503 alone.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class ModelError(Exception):
    """A model that cannot be loaded; the message names the file and what to do."""


class StartError(Exception):
    """The server cannot start, and trying again would not help: the message says what to mend."""


class OutputError(TypeError):
    """What a model returned is not what can be sent, or not what is described: no request would be answered."""
