"""Chooses the bodies that are given up when no more may be held and one more comes.

Those that come slowly, the slowest first, of the address of which most has come: a few clients that send a byte now and
then would keep all large bodies away. Nobody's is given up who sends quickly, nor for a client whose address has more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torchpar.serve.http.eviction import address_of
from torchpar.serve.http.peer import Peer


def choose_slow(
    peers: Iterable[Peer], newcomer: Peer | None, *, missing: int, quick_rate: int, now: float
) -> list[Peer]:
    """Chooses the connections whose bodies are given up for `missing` bytes more; none if that is not enough."""
    found = [(peer, *arriving) for peer in peers if (arriving := peer.arriving(now)) is not None]
    many: Counter[Any] = Counter()
    for peer, size, _ in found:
        many[address_of(peer)] += size
    least = many[address_of(newcomer)] if newcomer is not None else 0
    slow = [each for each in found if each[2] < quick_rate and each[0] is not newcomer]
    slow = [each for each in slow if many[address_of(each[0])] >= least]
    slow.sort(key=lambda each: (-many[address_of(each[0])], each[2]))
    chosen = []
    for peer, size, _ in slow:
        chosen.append(peer)
        missing -= size
        if missing <= 0:
            return chosen
    return []
