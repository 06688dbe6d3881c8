"""Keeps what clients have changed of the settings of the log and of traces, for all processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchpar.serve.supervisor.member import Member


class ChangedSettings:
    """Keeps the changes, of the log and of each model's traces, for processes that are started later."""

    def __init__(self) -> None:
        self._settings: dict[str, dict[str, Any]] = {}

    def change(self, members: Iterable[Member], setting: dict[str, Any]) -> None:
        """Sets in all processes what a client has set in one.

        In that one too, again: where clients change it in two at once, the order in which it comes here holds for all.
        """
        what = "log" if "log" in setting else "trace"
        known = self._settings.setdefault(f"{what} {setting.get('model') or ''}", {**setting, what: {}})
        known[what].update(setting[what])
        for member in members:
            member.set(setting)

    def tell(self, member: Member) -> None:
        """Tells a process that is ready what was changed until now."""
        for setting in self._settings.values():
            member.set(setting)
