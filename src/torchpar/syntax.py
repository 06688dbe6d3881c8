"""The syntax of systemd.syntax(7): conf text to sections and assignments, each with its file and line.

It knows the names of the sections, so that a misspelt one is found, and nothing of keys and values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torchpar.errors import Place, Problem

KNOWN_SECTIONS = ("Match", "Host", "Train", "Infer")

# How the names of sections and keys begin that are another program's, see systemd.syntax(7).
FOREIGN = "X-"


@dataclass(frozen=True)
class ConfFile:
    """One file of the configuration: the path that messages name, and its text."""

    path: str
    text: str


@dataclass(frozen=True)
class Assignment:
    """Key=Value, and where it stands."""

    key: str
    text: str
    origin: Place


@dataclass(frozen=True)
class Section:
    """A section's header without brackets, where it stands, and what is in it."""

    header: str
    origin: Place
    assignments: list[Assignment]


@dataclass
class Problems:
    """What is wrong in the files, and `notes` on what is not wrong but worth a warning."""

    errors: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def split_sections(file: ConfFile, problems: Problems) -> Iterator[Section]:
    """The sections of a file with their assignments, in order; what is not syntax goes to `problems`."""
    section: Section | None = None
    ignoring = False
    first = True
    for number, line in _logical_lines(file.text):
        origin = Place(file.path, number)
        if any(ord(c) < 32 and c != "\t" or ord(c) == 127 or 0xDC80 <= ord(c) <= 0xDCFF for c in line):
            problems.errors.append(
                Problem(origin, "the line has a control character or is not UTF-8 text; write plain text")
            )
            continue
        if line.startswith("["):
            header = " ".join(line[1:-1].split()) if line.endswith("]") else ""
            if section:
                yield section
            section, ignoring = None, True
            if not header:
                problems.errors.append(Problem(origin, f"'{line}' is not a section header such as [Train resnet]"))
            elif header == "Match" and not first:
                problems.errors.append(
                    Problem(origin, "[Match] must be the first section of its file; it skips all of it")
                )
            elif header in KNOWN_SECTIONS or header.split()[0] in ("Train", "Infer"):
                section, ignoring = Section(header, origin, []), False
            elif not header.startswith(FOREIGN):
                known = hint(header.split()[0], KNOWN_SECTIONS)
                problems.errors.append(Problem(origin, f"unknown section [{header}]{known}"))
            first = False
            continue
        key, equals, value = line.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.errors.append(Problem(origin, f"'{line:.60}' is neither [Section] nor Key=Value nor a # comment"))
        elif key.startswith((FOREIGN, f"Service.{FOREIGN}")):
            continue
        elif section:
            section.assignments.append(Assignment(key, value.strip(), origin))
        elif not ignoring:
            problems.errors.append(Problem(origin, f"{key}= stands before the first section header"))
    if section:
        yield section


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers: comments and blank lines dropped, `\\` continuations joined by a blank."""
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.lstrip().startswith(("#", ";")):
            continue
        start = start if parts else number
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        joined = " ".join([*parts, line]).strip() if parts else line.strip()
        parts = []
        if joined:
            yield start, joined
    if parts and "".join(parts).strip():
        yield start, " ".join(parts).strip()


def hint(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" with the nearest of the known names, or nothing."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]}?" if close else ""
