"""Reads what systemd knows of all of torchpar's units with one call, however many there are.

A call for each unit starts a process for each. The one for all prints text instead of typed values, of which those are
parsed here that are plain; a unit that has failed, or is about to start or end, is asked for by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from torchpar.host import systemd
from torchpar.host.systemd import AD_HOC, SERVICES, SOCKETS, Units

# systemd's number for no limit.
_NO_LIMIT = 2**64 - 1
_RUN = ("activating", "active", "reloading", "deactivating")
# Values that have a blank in them, which would be as many values here.
_UNPRINTABLE = "[unprintable]"


def _number(text: str) -> int:
    return _NO_LIMIT if text == "infinity" else int(text or 0)


def _microseconds(text: str) -> int:
    """Parses a time that is printed with --timestamp=us+utc: "Mon 2026-11-30 22:07:52.123456 UTC"."""
    if not text:
        return 0
    at = datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)
    return round((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)


# All that verify/service.py looks at, of a unit that has not failed and is no ad-hoc job.
PROPERTIES: Mapping[str, Callable[[str], Any]] = {
    "LoadState": str,
    "ActiveState": str,
    "SubState": str,
    "UnitFileState": str,
    "ControlGroup": str,
    "WorkingDirectory": str,
    "Result": str,
    "DropInPaths": str.split,
    "InvocationID": lambda text: list(bytes.fromhex(text)),
    "MainPID": _number,
    "NRestarts": _number,
    "MemoryMax": _number,
    "ActiveEnterTimestampMonotonic": _number,
    "StateChangeTimestampMonotonic": _number,
    "ActiveEnterTimestamp": _microseconds,
    "InactiveExitTimestamp": _microseconds,
    "ExecMainStartTimestamp": _microseconds,
}


class KnownUnits:
    """The door to systemd, with what is known of it already; what is not, or is not plain, it asks for."""

    def __init__(self, shown: str, asked: Units = systemd) -> None:
        """`shown` is what show_units() has said of these PROPERTIES."""
        blocks = (dict(line.partition("=")[::2] for line in block.splitlines()) for block in shown.split("\n\n"))
        self._blocks = {block["Id"]: block for block in blocks if block.get("Id")}
        self._asked = asked

    def unit_properties(self, unit: str) -> dict[str, Any]:
        """Returns the D-Bus properties of a unit that a look needs. Raises SystemdError."""
        block = self._blocks.get(unit, {})
        plain = (block.get("ActiveState"), block.get("SubState"), block.get("Result")) in (
            ("active", "running", "success"),
            ("inactive", "dead", "success"),
        )
        if not plain or fnmatchcase(unit, AD_HOC) or _UNPRINTABLE in block.get("DropInPaths", ""):
            return self._asked.unit_properties(unit)
        try:
            return {name: parse(block.get(name, "")) for name, parse in PROPERTIES.items()}
        except ValueError:
            return self._asked.unit_properties(unit)

    def running_services(self) -> tuple[str, ...]:
        """Lists the units of services that run or are about to."""
        return tuple(self._matching(SERVICES, _RUN))

    def ad_hoc_jobs(self) -> tuple[str, ...]:
        """Lists the units of ad-hoc jobs that run or are about to."""
        return tuple(self._matching((AD_HOC,), ("activating", "active", "deactivating")))

    def open_sockets(self) -> tuple[str, ...]:
        """Lists the sockets of inference services that listen."""
        return tuple(self._matching((SOCKETS,), ("active",)))

    def _matching(self, patterns: Collection[str], states: Collection[str]) -> Iterator[str]:
        for unit, block in sorted(self._blocks.items()):
            if block.get("ActiveState") in states and any(fnmatchcase(unit, pattern) for pattern in patterns):
                yield unit
