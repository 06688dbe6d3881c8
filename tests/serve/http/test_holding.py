"""Where no more may be held, slow bodies give way, of the address that holds most first."""

from __future__ import annotations

from typing import Any

from torchpar.serve.http.holding import choose_slow
from torchpar.serve.http.peer import Peer


class Sending(Peer):
    def __init__(self, address: str, size: int, rate: float = 0.0) -> None:
        self.peer = address, 1
        self.size, self.rate = size, rate

    def arriving(self, now: float) -> tuple[int, float] | None:
        return (self.size, self.rate) if self.size else None

    def expire(self, now: float) -> None:
        pass

    waits_since: Any = expire
    make_way: Any = expire
    drain: Any = expire
    abort: Any = expire


def choose(peers: list[Sending], newcomer: Peer | None, missing: int) -> list[Peer]:
    return choose_slow(peers, newcomer, missing=missing, quick_rate=100, now=0.0)


NOBODY = Sending("new", 0)


def test_the_slowest_of_the_address_that_holds_most_goes_first() -> None:
    slow, slower, other = Sending("a", 10, 5.0), Sending("a", 10, 1.0), Sending("b", 15)
    assert choose([slow, other, slower], NOBODY, 1) == [slower]
    assert choose([slow, other, slower], None, 25) == [slower, slow, other]


def test_nobody_goes_where_that_is_not_enough() -> None:
    assert choose([Sending("a", 10), Sending("b", 10)], NOBODY, 21) == []


def test_who_sends_quickly_stays() -> None:
    quick, slow = Sending("a", 1000, 100.0), Sending("b", 10, 99.0)
    assert choose([quick, slow], NOBODY, 10) == [slow]
    assert choose([quick, slow], NOBODY, 11) == []


def test_nobody_goes_for_a_client_whose_address_holds_more() -> None:
    mine, other = Sending("a", 20, 100.0), Sending("b", 10)
    assert choose([mine, other], Sending("a", 0), 1) == []
    assert choose([mine, other], mine, 1) == []
    assert choose([mine, other], other, 1) == []
    assert choose([mine, other], NOBODY, 1) == [other]
