"""Searches for a better way to share cores out, where the rules leave services less than is fair.

Cores of one NUMA node and one kind are alike, so it is only how many each service gets of each `Cell`. Services are
taken one after the other, each with the ways that are best for it, and the ways of those before are changed where that
is better for all together. It ends when everybody has a fair share, when all ways are tried, or after so many steps: it
gives the same answer on a slow host as on a fast one.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torchpar.placement.quality import ACROSS_NODES, Ask, speed_on

# Ways that are looked at, of one service and in all; one of many cells counts for more. This is a quarter of a second.
_WAYS = 1_200
_STEPS = 8_000

# What is given up of all speed so that services are on fewer nodes: each of them has ranks or processes on each.
_NEARLY = 0.999

# Ways of one service that are looked at even when nothing is left of the steps, until there is an answer.
_FEWEST = 4

Cell = tuple[int, float]  # NUMA node, capacity
Amounts = tuple[int, ...]  # of each cell


@dataclass(frozen=True)
class Seeker:
    """One service in the search: what it asks for, and the speed that is fair."""

    ask: Ask
    fair: float


@dataclass
class _Search:
    """The state of one search: the steps that are left, and the best way so far."""

    cells: tuple[Cell, ...]
    seekers: Sequence[Seeker]
    quota: int | None
    keep: int
    steps: int
    best: float = -1.0
    most: float = -1.0
    pieces: int = 0
    found: tuple[Amounts, ...] = ()
    speeds: dict[tuple[Ask, Amounts], float] = field(default_factory=dict)
    of_node: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, (node, _) in enumerate(self.cells):
            self.of_node.setdefault(node, []).append(i)


def search(
    free: Mapping[Cell, int], seekers: Sequence[Seeker], *, keep: int = 0, quota: int | None = None
) -> list[dict[Cell, int]]:
    """Finds how many cores of each cell each service gets; empty where not all can have what they need at the least.

    `keep` cores are left over.
    """
    found = _search(tuple(sorted(free.items())), tuple(seekers), keep, quota)
    cells = sorted(free)
    return [{cell: number for cell, number in zip(cells, amounts, strict=True) if number} for amounts in found]


# Hosts of a fleet that differ in other things are searched once.
@functools.lru_cache(maxsize=64)
def _search(
    free: tuple[tuple[Cell, int], ...], seekers: tuple[Seeker, ...], keep: int, quota: int | None
) -> Sequence[Amounts]:
    cells = tuple(cell for cell, _ in free)
    numbers = tuple(number for _, number in free)
    speeds: dict[tuple[Ask, Amounts], float] = {}
    # What comes first has the best places: the other way round it may be better for all.
    orders = [list(range(len(seekers))), list(reversed(range(len(seekers))))]
    orders = orders if len(seekers) > 1 else orders[:1]
    found: list[tuple[float, list[Amounts]]] = []
    steps = _STEPS
    for number, order in enumerate(orders):
        mine = steps // (len(orders) - number)
        state = _Search(cells, [seekers[i] for i in order], quota, keep, mine, speeds=speeds)
        _place(state, numbers, ())
        steps -= mine - max(0, state.steps)
        if state.found:
            amounts = dict(zip(order, state.found, strict=True))
            found.append((state.best, [amounts[i] for i in range(len(seekers))]))
    return max(found, key=lambda each: round(each[0], 9), default=(0.0, []))[1]


def _place(state: _Search, free: Amounts, chosen: tuple[Amounts, ...]) -> None:
    """Tries the ways of the next service, the best first, with all ways of those after it."""
    state.steps -= 1
    before, after = state.seekers[: len(chosen)], state.seekers[len(chosen) :]
    got = sum(
        min(_speed(state, seeker.ask, amounts), seeker.fair) for seeker, amounts in zip(before, chosen, strict=True)
    )
    if not after:
        pieces = sum(_pieces(state, amounts) for amounts in chosen)
        nearly = _NEARLY if pieces < state.pieces else 1 + 1e-9
        if got > max(state.best * nearly, state.most * _NEARLY):
            state.best, state.found, state.pieces = got, chosen, pieces
            state.most = max(state.most, got)
        return
    needed = state.keep + sum(_least(seeker.ask) for seeker in after[1:])
    whole = sum(seeker.fair for seeker in state.seekers)
    # Until there is an answer each service may use its part of the steps; then they are for whoever comes first.
    steps = state.steps // (1 if state.found else len(after))
    for amounts in _ways(state, after[0], free, sum(free) - needed, steps):
        more = min(_speed(state, after[0].ask, amounts), after[0].fair) + sum(seeker.fair for seeker in after[1:])
        if got + more <= state.best * (1 + 1e-9):
            break  # the ways are the best first
        if state.steps <= (0 if state.found else -_STEPS):
            return
        left = tuple(number - taken for number, taken in zip(free, amounts, strict=True))
        _place(state, left, (*chosen, amounts))
        if state.best >= whole * (1 - 1e-9):
            return


def _least(ask: Ask) -> int:
    return ask.count or ask.ranks


def _ways(state: _Search, seeker: Seeker, free: Amounts, most: int, steps: int) -> list[Amounts]:
    """Returns the ways to place one service, of at most `most` cores, the best first: no core that it could do without.

    They take no more than so many `steps`, but for a few ways.
    """
    most = min(most, seeker.ask.count or most)
    if most < _least(seeker.ask):
        return []
    size = 1
    for number in free:
        size = min(size * (number + 1), _WAYS + 1)
    cost = 1 + len(free) // 8
    fewest = 0 if state.found else _FEWEST
    number = max(fewest, steps // cost)
    if size <= min(_WAYS, number):
        ways = _all_ways(state, free, most)
        state.steps -= size // 8
    else:
        ways = _shapes(state, seeker, free, most, number)
    worth: dict[Amounts, tuple[float, int, int, int, Amounts]] = {}
    for amounts in ways:
        state.steps -= cost
        taken = sum(amounts)
        if amounts in worth or taken > most or taken < _least(seeker.ask):
            continue
        if seeker.ask.count and taken != seeker.ask.count:
            continue
        speed = min(_speed(state, seeker.ask, amounts), seeker.fair)
        # Of equal ones that with the fewest cores, on the fewest nodes, and then that which breaks up fewest places.
        broken = sum(0 < number < whole for number, whole in zip(amounts, free, strict=True))
        order = tuple(-number for number in amounts)
        worth[amounts] = (-round(speed, 9), taken, _pieces(state, amounts), broken, order)
    return sorted(worth, key=lambda amounts: worth[amounts])


def _all_ways(state: _Search, free: Amounts, most: int) -> Iterator[Amounts]:
    """Yields all ways, but of nodes that are alike only one order."""
    alike: dict[tuple[tuple[float, int], ...], list[list[int]]] = {}
    for places in state.of_node.values():
        alike.setdefault(tuple((state.cells[i][1], free[i]) for i in places), []).append(places)
    groups = [places for group in alike.values() for places in itertools.pairwise(group)]
    for amounts in itertools.product(*(range(min(number, most), -1, -1) for number in free)):
        if all([amounts[i] for i in one] >= [amounts[i] for i in other] for one, other in groups):
            yield amounts


def _shapes(state: _Search, seeker: Seeker, free: Amounts, most: int, number: int) -> Iterator[Amounts]:
    """Returns the ways that are worth a look on a larger host: equal ranks within nodes, or all cores side by side.

    Of more than so many it is those that have the most threads on the fastest cores, and then the fewest cores.
    """
    ask = seeker.ask
    found: list[tuple[float, int, int, float, dict[int, int]]] = []
    for slowest in sorted({capacity for (_, capacity), number in zip(state.cells, free, strict=True) if number}):
        sizes: dict[int, int] = {}
        for (node, capacity), cores in zip(state.cells, free, strict=True):
            if capacity >= slowest and cores:
                sizes[node] = sizes.get(node, 0) + cores
        for on_node in _of_nodes(ask, sizes, most, seeker.fair / slowest):
            taken = sum(on_node.values())
            found.append((-min(slowest * taken, seeker.fair), taken, len(found), slowest, on_node))
    state.steps -= len(found) // 8
    for *_, slowest, on_node in heapq.nsmallest(number, found):
        yield _filled(state, on_node, slowest, free, ask.count)


def _of_nodes(ask: Ask, sizes: Mapping[int, int], most: int, wanted: float) -> Iterator[dict[int, int]]:
    """Counts the cores of each node, where `wanted` threads are a fair share."""
    smallest_first = sorted(sizes, key=lambda node: (sizes[node], node))
    largest_first = sorted(sizes, key=lambda node: (-sizes[node], node))
    for nodes in (smallest_first, largest_first):
        if ask.by_node:
            for number in _numbers(min(len(nodes), most)):
                largest = sizes[largest_first[number - 1]]
                for size in _sizes(min(largest, most // number), wanted / number):
                    yield dict.fromkeys([node for node in nodes if sizes[node] >= size][:number], size)
            continue
        for size in _sizes(most // ask.ranks, wanted / ask.ranks):
            missing, within = ask.ranks, {}
            for node in nodes:
                here = min(missing, sizes[node] // size)
                if here:
                    within[node] = here * size
                missing -= here
            if not missing:
                yield within
        for size in _sizes(most // ask.ranks, wanted / ask.ranks / ACROSS_NODES):
            left, across = ask.ranks * size, {}
            for node in nodes:
                across[node] = min(left, sizes[node])
                left -= across[node]
            if not left:
                yield across
                yield _level(sizes, ask.ranks * size)


def _level(sizes: Mapping[int, int], number: int) -> dict[int, int]:
    """Chooses so many cores of the nodes with the most, such that what is left of these is equal."""
    left = [(-size, node) for node, size in sizes.items()]
    heapq.heapify(left)
    for _ in range(number):
        heapq.heapreplace(left, (left[0][0] + 1, left[0][1]))
    return {node: sizes[node] + size for size, node in left if -size < sizes[node]}


def _numbers(most: int) -> Iterator[int]:
    """Returns the numbers of nodes that are worth a look: all small ones, and some of the others."""
    number = 1
    while number < most:
        yield number
        number += max(1, number // 8)
    yield most


def _sizes(largest: int, wanted: float) -> Iterator[int]:
    """Returns the sizes of a rank that are worth a look: what is wanted, or the most, and some that leave more to
    others."""
    size = min(largest, max(1, int(wanted) + (wanted % 1 > 1e-6)))
    for less in (0, 1, 2, 3):
        if size - less > 0:
            yield size - less


def _filled(state: _Search, on_node: Mapping[int, int], slowest: float, free: Amounts, count: int) -> Amounts:
    """Returns the cells for so many cores of each node, the slowest that will do first; and what a count asks for
    besides."""
    amounts = [0] * len(free)
    for node, wanted in on_node.items():
        left = wanted
        for i in state.of_node[node]:
            if state.cells[i][1] >= slowest:
                amounts[i] = min(left, free[i])
                left -= amounts[i]
    missing = count - sum(amounts)
    if missing > 0:
        for i in sorted(range(len(free)), key=lambda i: (amounts[i] == 0, state.cells[i][1], i)):
            more = min(missing, free[i] - amounts[i])
            amounts[i] += more
            missing -= more
    return tuple(amounts)


def _pieces(state: _Search, amounts: Amounts) -> int:
    return len({node for (node, _), number in zip(state.cells, amounts, strict=True) if number})


def _speed(state: _Search, ask: Ask, amounts: Amounts) -> float:
    key = (ask, amounts)
    if key not in state.speeds:
        found = zip(state.cells, amounts, strict=True)
        cells = [(node, capacity, number) for (node, capacity), number in found if number]
        state.speeds[key] = speed_on(cells, ask, state.quota)
    return state.speeds[key]
