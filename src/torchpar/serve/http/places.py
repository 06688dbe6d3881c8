"""Who goes when all places are taken and one more client comes.

The one that has been waited for longest, of the address that has the most connections: a flood gives way to the others,
and behind a load balancer, where all have one address, it is the connection that was used least recently. Nobody goes
whose request is being computed, nor anybody before the places are all taken.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from typing import Any

from torchpar.serve.http.peer import Peer

# Who has been waited for no longer than this is not yet the one to go; nor is anew looked for one more often.
LEAST_SECONDS = 0.1


class Places:
    """Of one server."""

    def __init__(self) -> None:
        self._next: deque[tuple[float, Peer]] = deque()
        self._looked = float("-inf")

    def make(self, peers: Collection[Peer], now: float) -> Peer | None:
        """Which of them is to go; None where none may."""
        if not self._next and now >= self._looked + LEAST_SECONDS:
            self._looked = now
            self._next.extend(_in_order(peers, now))
        while self._next:
            since, peer = self._next.popleft()
            if peer in peers and peer.waits_since() == since:
                return peer
        return None


def _in_order(peers: Collection[Peer], now: float) -> list[tuple[float, Peer]]:
    many = Counter(map(_address, peers))
    found = [(since, peer) for peer in peers if (since := peer.waits_since()) is not None]
    found = [each for each in found if each[0] <= now - LEAST_SECONDS]
    return sorted(found, key=lambda each: (-many[_address(each[1])], each[0]))


def _address(peer: Peer) -> Any:
    return peer.peer[0] if isinstance(peer.peer, tuple) else None
