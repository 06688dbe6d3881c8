"""Requests and responses, as the protocols hand them to the engine and get them back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Union

from torchpar.serve.errors import ServeError
from torchpar.serve.tensors import Tensor


@dataclass
class Request:
    """One inference request.

    version "" is the latest. outputs names those that are wanted, None all. priority: 1 is the highest, as Triton
    counts; 0 is the model's default, which goes after all numbers up to 100. deadline is in the event loop's time
    (time.monotonic() for asyncio): when it has passed, the request costs no computation any more.
    """

    model: str
    inputs: list[Tensor]
    version: str = ""
    outputs: list[str] | None = None
    id: str = ""
    priority: int = 0
    deadline: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Response:
    """The answer to one request; outputs are in the model's order."""

    model: str
    version: str
    id: str
    outputs: list[Tensor]
    parameters: dict[str, Any] = field(default_factory=dict)


Done = Callable[[Union[Response, ServeError]], None]


class Ticket(ABC):
    """A request that was accepted; `done` is called once for it, whatever happens."""

    __slots__ = ()

    @abstractmethod
    def cancel(self) -> None:
        """Cancels the request, as nobody waits for its answer: unless it is being computed, it costs nothing more.

        `done` is still called, with status 499 or with the answer. Call it on the event loop.
        """
