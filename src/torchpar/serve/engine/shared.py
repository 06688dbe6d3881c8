"""An engine that is one of several of a service, each in its own process: to clients they are one."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Callable

from torchpar.serve.engine.engine import Engine
from torchpar.serve.engine.options import EngineOptions
from torchpar.serve.engine.statistics import Statistics
from torchpar.serve.errors import ServeError


class SharedEngine(Engine):
    """Loads and unloads in all processes, and tells the counters of all.

    totals are the sums of all processes, as they were a second ago at the most; None before there are any. So that two
    scrapes, answered by different processes, never go backwards, a process does not mix its own newer ones in.
    """

    def __init__(self, options: EngineOptions, tell_others: Callable[[str, str], Awaitable[str]]) -> None:
        """tell_others has all other processes do "load" or "unload" with a model, and returns what went wrong or ""."""
        super().__init__(options)
        self.totals: Sequence[tuple[str, str, Statistics, int]] | None = None
        self._tell_others = tell_others

    async def load(self, model: str) -> None:
        """Loads a model in every process, as Engine.load. Raises ServeError when one of them cannot."""
        await super().load(model)
        await self._others("load", model)

    async def unload(self, model: str) -> None:
        """Unloads a model in every process, as Engine.unload."""
        await super().unload(model)
        await self._others("unload", model)

    async def do_here(self, verb: str, model: str) -> None:
        """Loads, unloads or reloads here only, for another process or `systemctl reload`. Raises ServeError."""
        if verb == "reload":
            await super().reload()
        else:
            await (super().load(model) if verb == "load" else super().unload(model))

    async def _others(self, verb: str, model: str) -> None:
        wrong = await self._tell_others(verb, model)
        if wrong:
            raise ServeError(400, wrong)

    def counters_here(self) -> Sequence[tuple[str, str, Statistics, int]]:
        """Returns the counters of this process alone."""
        return super().counters()

    def statistics(self, model: str | None = None, version: str = "") -> list[tuple[str, str, Statistics]]:
        """Returns the statistics of all processes together. Raises ServeError 404 or 503."""
        own = super().statistics(model, version)
        totals = {(name, number): statistics for name, number, statistics, _ in self.totals or ()}
        return [(name, number, totals.get((name, number), statistics)) for name, number, statistics in own]

    def counters(self) -> Sequence[tuple[str, str, Statistics, int]]:
        """Returns the counters of all processes together."""
        return super().counters() if self.totals is None else self.totals
