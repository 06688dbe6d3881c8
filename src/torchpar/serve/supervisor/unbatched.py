"""Has all processes answer one by one where one of them has found that an answer in a batch was another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Callable

from torchpar.serve.supervisor.member import Member


class Unbatched:
    """Ends batching in all processes where one has found a difference, until the models are loaded again."""

    def __init__(self, members: Sequence[Member], more: Callable[[], None]) -> None:
        """more: called when there is more than before."""
        self._members = members
        self._more = more
        self.keys: set[str] = set()

    def take(self, member: Member, keys: Collection[str], *, loading: bool) -> None:
        """Takes all that a process knows of, and tells the others.

        loading: models are being loaded. What it said before may then be of former ones.
        """
        new, member.unbatched = set(keys) - member.unbatched, set(keys)
        known = len(self.keys)
        self.keys |= {key for each in self._members for key in each.unbatched}
        self._tell(new if loading else self.keys)
        if len(self.keys) > known:
            self._more()

    def loaded(self) -> None:
        """Forgets what was of former models, when models have been loaded."""
        self.keys = {key for each in self._members for key in each.unbatched}
        self._tell(self.keys)

    def _tell(self, keys: set[str]) -> None:
        for member in self._members:
            missing = keys - member.unbatched
            if missing and member.ready and member.channel:
                member.channel.send(unbatched=sorted(missing))
