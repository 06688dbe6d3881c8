"""Chooses the answers of batches that are computed alone too, to see whether they are the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Sequence
from typing import Any

# In so many batches at first every answer, and then in one of so many one answer, is computed alone too.
WATCHED, WATCHED_LATER = 64, 256
# What is new is watched again, by so many answers of each batch: so many batches of each shape with each power of two
# of rows, and those that have more rows than any before. After so many of these in all only one in so many may be, and
# one answer: clients that send ever new shapes must not cost more than others.
WATCHED_NEW, WATCHED_NEWS, NEWS_LATER = 4, 256, 1024
ANSWERS_OF_NEWS = 2
# Kinds that are kept; clients that send ever new shapes must not fill the memory.
KINDS_KEPT = 4096


class Watch:
    """The choice for one version of a model."""

    def __init__(self) -> None:
        self._batches = itertools.count()  # for all threads
        self._kinds: dict[Any, tuple[int, int]] = {}  # shapes and sizes: times watched, most rows of these
        self._news = 0  # batches that were watched for what is new in them

    def note_compared(self, shapes: Sequence[tuple[int, ...]], rows: int) -> None:
        """Notes that batches of these shapes, up to so many rows, were compared at the start: they are not new.

        Else all requests that come while one is watched make the next batch larger than any before, and watched too.
        """
        for bits in range((rows - 1).bit_length() + 1):
            self._kinds[tuple(shapes), bits] = WATCHED_NEW, min(1 << bits, rows)

    def choose(self, requests: int, key: Hashable, rows: int) -> Sequence[int]:
        """Chooses the answers of a batch that are computed alone too, by their number in it."""
        number, every = next(self._batches), range(requests)
        kind = (key, (rows - 1).bit_length())
        times, largest = self._kinds.get(kind, (0, 0))
        new = times < WATCHED_NEW or rows > largest
        if number >= WATCHED:
            allowed = self._news < WATCHED_NEWS + number // NEWS_LATER
            if not new or not allowed:
                return () if number % WATCHED_LATER else (random.choice(every),)
            # All would take long for a large batch, while more requests come that make a larger one. What is beyond the
            # rows that a program was made for is at the end.
            chosen = (*random.sample(every[:-1], min(len(every), ANSWERS_OF_NEWS) - 1), every[-1])
            chosen = chosen if self._news < WATCHED_NEWS else chosen[-1:]
            self._news += 1
        else:
            chosen = tuple(every)
        if len(self._kinds) >= KINDS_KEPT:
            self._kinds.clear()
        self._kinds[kind] = times + 1, max(largest, rows)
        return chosen
