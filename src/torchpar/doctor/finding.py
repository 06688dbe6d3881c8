"""The answers of checks: how bad it is, what was found, where that is to be seen, and what cures it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    """The severity of a finding, and the status of a check, which is that of its worst finding."""

    NOT_APPLICABLE = "n/a"  # this host has no such thing
    OK = "ok"  # nothing to do
    NOTE = "note"  # good to know; a choice that an administrator may have made
    UNKNOWN = "unknown"  # cannot be told, for example without root
    WARN = "warn"  # works, but could be better, or may break
    FAIL = "fail"  # costs much, or does not work

    @property
    def rank(self) -> int:
        """The place in the order from nothing to the worst."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    `found` is a sentence without a full stop, `evidence` what was read and where. `cure` is a sentence for what a
    person has to decide, `commands` are lines for a shell that mend it without a decision. Either may be empty.
    """

    severity: Severity
    found: str
    evidence: str = ""
    cure: str = ""
    commands: tuple[str, ...] = ()


def ok(found: str, evidence: str = "") -> Finding:
    """Makes the answer that all is well, where there is more to say than the check's own words."""
    return Finding(Severity.OK, found, evidence)


def not_applicable(found: str) -> Finding:
    """Makes the answer that this host has no such thing."""
    return Finding(Severity.NOT_APPLICABLE, found)


def unknown(found: str, cure: str = "run it as root") -> Finding:
    """Makes the answer that it cannot be told, and what would help."""
    return Finding(Severity.UNKNOWN, found, cure=cure)


def note(found: str, evidence: str, cure: str = "", *commands: str) -> Finding:
    """Makes a note of what may be an administrator's choice."""
    return Finding(Severity.NOTE, found, evidence, cure, commands)


def warn(found: str, evidence: str, cure: str = "", *commands: str) -> Finding:
    """Makes a warning."""
    return Finding(Severity.WARN, found, evidence, cure, commands)


def fail(found: str, evidence: str, cure: str = "", *commands: str) -> Finding:
    """Makes the finding of something that does not work, or costs much."""
    return Finding(Severity.FAIL, found, evidence, cure, commands)
