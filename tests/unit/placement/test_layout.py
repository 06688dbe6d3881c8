"""Which cores a service with several ranks gets of what is free."""

from __future__ import annotations

import pytest

from tests.unit.placement.test_split import cores, text
from torchpar.placement.layout import choose_for_nodes, choose_for_ranks
from torchpar.placement.split import by_node


def distance(a: int, b: int) -> int:
    """No node is nearer than another."""
    return 10 if a == b else 20


@pytest.mark.parametrize(
    ("free", "count", "ranks", "expected"),
    [
        ((5, 5, 5), 6, 3, "0-3 5-6"),
        ((5, 3), 6, 2, "0-2 5-7"),
        ((8, 8), 6, 2, None),
        ((3, 3), 4, 1, None),
        ((1, 1, 1), 3, 2, "0 1 2"),
        ((3, 1), 4, 2, None),
    ],
)
def test_equal_ranks_are_on_nodes_where_they_have_room(
    free: tuple[int, ...], count: int, ranks: int, expected: str | None
) -> None:
    """None where one node has room for all, or no node for one of them."""
    chosen = choose_for_ranks(cores(*free), count, ranks, distance)
    assert (text(by_node(chosen)) if chosen else None) == expected


@pytest.mark.parametrize(
    ("free", "count", "expected"),
    [
        ((12, 20), 15, "12-26"),
        ((7, 7, 8, 8), 15, "0-6 7-13 14"),
        ((11, 19), 30, "0-10 11-29"),
        ((4, 4), 8, "0-3 4-7"),
        ((2, 2, 2, 2), 4, "4-5 6-7"),
    ],
)
def test_a_rank_for_each_node_has_equal_parts_of_few_nodes(free: tuple[int, ...], count: int, expected: str) -> None:
    """As many cores as asked for; whole nodes are left for others."""
    assert text(by_node(choose_for_nodes(cores(*free), count, distance))) == expected
