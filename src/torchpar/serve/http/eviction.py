"""Chooses the connection that is closed when there are as many as may be and one more client comes.

The one that has been waited for longest, of the address that has the most connections: a flood gives way to the others,
and behind a load balancer, where all have one address, it is the connection that was used least recently. Nobody goes
whose request is being computed, nor anybody before the places are all taken, nor for a client whose address has more
connections than theirs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from typing import Any

from torchpar.serve.http.peer import Peer

# Who has been waited for no longer than this is not yet the one to go; nor is anew looked for one more often.
LEAST_SECONDS = 0.1


class Eviction:
    """The choice of one server."""

    def __init__(self) -> None:
        self._next: deque[tuple[float, Peer]] = deque()
        self._many: Counter[Any] = Counter()
        self._looked = float("-inf")

    def choose(self, peers: Collection[Peer], newcomer: Peer, now: float) -> Peer | None:
        """Chooses the connection that is closed for the newcomer; None where none may be."""
        if now >= self._looked + LEAST_SECONDS:
            self._looked = now
            self._many = Counter(map(address_of, peers))
            self._next = deque(_in_order(peers, self._many, now))
        mine = address_of(newcomer)
        while self._next:
            since, peer = self._next[0]
            address = address_of(peer)
            if peer in peers and peer.waits_since() == since:
                if self._many[address] < self._many[mine]:
                    # Those of the newcomer's address that may go stood before it, or will at the next look.
                    return None
                self._many[address] -= 1
                self._many[mine] += 1
                self._next.popleft()
                return peer
            self._next.popleft()
        return None


def _in_order(peers: Collection[Peer], many: Counter[Any], now: float) -> list[tuple[float, Peer]]:
    found = [(since, peer) for peer in peers if (since := peer.waits_since()) is not None]
    found = [each for each in found if each[0] <= now - LEAST_SECONDS]
    return sorted(found, key=lambda each: (-many[address_of(each[1])], each[0]))


def address_of(peer: Peer) -> Any:
    """Returns the address that all connections of one client, or of one load balancer, have in common; None if none."""
    return peer.peer[0] if isinstance(peer.peer, tuple) else None
