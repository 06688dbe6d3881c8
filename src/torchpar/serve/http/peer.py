"""A connection as the server sees it, whichever protocol it speaks."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any


class Peer(asyncio.Protocol, ABC):
    """One connection of any protocol. `peer` is its other end, as accept(2) said."""

    __slots__ = ("peer",)
    peer: Any

    @abstractmethod
    def expire(self, now: float) -> None:
        """See what the client has been too slow with."""

    @abstractmethod
    def waits_since(self) -> float | None:
        """Returns since when the next move is the client's, in the loop's time; None where it waits for us."""

    @abstractmethod
    def make_way(self) -> None:
        """Closes, for another client has no room."""

    def arriving(self, now: float) -> tuple[int, float] | None:
        """Returns the bytes of a large unfinished body so far, and lately in a second; None if there is none."""
        return None

    def calls_under_way(self) -> int:
        """Counts what the client waits for at the same time, where a connection carries several calls."""
        return 1

    def give_up(self) -> None:
        """Refuses the body that is not whole, for its memory is wanted."""

    @abstractmethod
    def drain(self) -> None:
        """Closes, if nothing is due."""

    @abstractmethod
    def abort(self) -> None:
        """Cuts it off."""
