"""Keeps with a generation what comes back, and when, unless `torchpar confirm` is run.

It is written before the generation is in force and counts only while that is: whoever puts another one in force has
settled it. Within the boot in which it was written it goes by a clock that nobody can set. After another boot it goes
by the time of day, which may be wrong then, but it never takes longer than the agreed time from that boot on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from torchpar.contract.typed_json import parse_json, shape
from torchpar.host.clocks import Clocks


@dataclass(frozen=True)
class Unconfirmed:
    """Generation `back` comes back `seconds` after the boot `boot_id` had `monotonic`, at `time_of_day`.

    The services `restarted` were restarted to have the new settings, and are again to have the old ones.
    """

    back: int
    seconds: int
    boot_id: str
    monotonic: float
    time_of_day: float
    restarted: tuple[str, ...] = ()

    def seconds_left(self, now: Clocks) -> float:
        """Returns the seconds in which it can still be confirmed; 0 when they are over."""
        if now.boot_id and now.boot_id == self.boot_id:
            left = self.monotonic + self.seconds - now.monotonic
        else:
            left = min(self.time_of_day + self.seconds - now.time_of_day, self.seconds - now.since_boot)
        return max(0.0, min(left, float(self.seconds)))

    def json(self) -> str:
        """Writes the text of its file."""
        return json.dumps({"version": 1, **asdict(self)}) + "\n"


def begin(back: int, seconds: int, now: Clocks) -> Unconfirmed:
    """Makes the way back to a generation, whose time begins now."""
    return Unconfirmed(back, seconds, now.boot_id, now.monotonic, now.time_of_day)


def parse_unconfirmed(text: str | bytes) -> Unconfirmed:
    """Parses the text of `json`. Raises ShapeError."""
    return shape(parse_json(text), Unconfirmed)
