"""Checks of a host, each a small function that gives one finding with its evidence and the exact fix."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class Severity(enum.Enum):
    """The result of a check."""

    OK = "ok"  # nothing to do
    WARN = "warn"  # works, but could be better
    FAIL = "fail"  # costs much, or does not work
    UNKNOWN = "unknown"  # cannot be told


@dataclass(frozen=True)
class Finding:
    """The result of a check, where it is to be seen, and the command that mends it ("": nothing to mend)."""

    check: str
    severity: Severity
    found: str
    evidence: str
    fix: str = ""


Check = Callable[[Path], Finding]

CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Registers a check, a function of the root, under a name."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register
