"""Has processes load and unload models: those of one place in turn where the models are large."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Callable

from torchpar.serve.supervisor.member import Member
from torchpar.serve.supervisor.places import Place

# So much sooner than systemd gives up ExecReload=, after the unit's TimeoutStartSec=, a load counts as one that hangs,
# for whoever reloads to be told. Where that is short, it is half of it.
TELL_SECONDS = 60.0


class Loading:
    """Knows which loads are asked of processes now, and what clients have unloaded."""

    def __init__(
        self, places: Mapping[int, Place], start_timeout: int | None, late: Callable[[Member], None]
    ) -> None:
        """places: by their rank in the plan. late: is given each process that ends a load in which it hung."""
        self._places = places
        self._seconds = max(start_timeout - TELL_SECONDS, start_timeout / 2) if start_timeout else None
        self._late = late
        self._numbers = itertools.count()
        self._calls = 0
        self.unloaded: set[str] = set()  # by clients: where all are started anew, they find them on disk

    @property
    def active(self) -> bool:
        """Says whether processes load now: what is known of their models changes meanwhile."""
        return self._calls > 0

    async def call(self, members: Sequence[Member], verb: str, model: str) -> dict[Member, str]:
        """Has processes do something, and waits for it; returns what went wrong, or "", in each that could be asked.

        One that has not done it when the time of all is over hangs: nobody waits for it any more.
        """
        if verb == "unload":
            self.unloaded.add(model)
        elif verb == "load":
            self.unloaded.discard(model)
        else:
            self.unloaded.clear()
        for member in members:
            if not member.ready:
                member.reload_due = member.reload_due or verb != "unload"
        asked = [member for member in members if member.ready and member.channel]
        until = None if self._seconds is None else asyncio.get_running_loop().time() + self._seconds
        self._calls += 1
        try:
            parts = [[member for member in asked if member.rank == rank] for rank in self._places]
            found = await asyncio.gather(*(self._order_in_turn(part, verb, model, until) for part in parts))
        finally:
            self._calls -= 1
        wrong = {member: what for part in found for member, what in part.items()}
        return {member: wrong[member] for member in asked}

    async def _order_in_turn(
        self, members: Sequence[Member], verb: str, model: str, until: float | None
    ) -> dict[Member, str]:
        """Has the processes of a place load: one, then the others, one after another where it turns out to be large.

        Each has a copy of its own until it has loaded. Those that unload need not wait. Where one begins to hang, the
        rest would too: they are not asked.
        """
        wrong: dict[Member, str] = {}
        rest = list(members)
        while rest and verb != "unload" and (not wrong or self._places[rest[0].rank].is_large()):
            member = rest.pop(0)
            hung = member.hung
            wrong[member] = await self._order_ready(member, verb, model, until)
            if member.hung and not hung:
                return {**wrong, **dict.fromkeys(rest, wrong[member])}
        found = await asyncio.gather(*(self._order_ready(member, verb, model, until) for member in rest))
        return {**wrong, **dict(zip(rest, found))}

    async def _order_ready(self, member: Member, verb: str, model: str, until: float | None) -> str:
        if member.ready and member.channel:
            return await self._order(member, verb, model, until)
        member.reload_due = member.reload_due or verb != "unload"  # it is being started again
        return ""

    async def _order(self, member: Member, verb: str, model: str, until: float | None) -> str:
        if member.hung:
            return self._hangs(member)
        number = next(self._numbers)
        call: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        assert member.channel
        member.calls[number] = call
        if not member.channel.send(do=verb, model=model, number=number):
            del member.calls[number]
            return f"process {member.number} does not listen"
        seconds = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait([call], timeout=seconds)
        if done:
            return call.result()
        member.hung = True
        call.add_done_callback(lambda _: self._end_hang(member))
        return self._hangs(member)

    def _end_hang(self, member: Member) -> None:
        member.hung = False
        self._late(member)

    def _hangs(self, member: Member) -> str:
        return (
            f"process {member.number} has not loaded its models in {(self._seconds or 0) / 60:g} minutes, and can load"
            " nothing else until that load ends, or it is started again"
        )
