"""The syntax of systemd.syntax(7): conf text to sections and assignments, each with its file and line.

It knows the names of the sections, so that a misspelt one is found, and nothing of keys and values.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from torchpar.conf.characters import BLANKS, NOT_PLAIN, ODD, name_of
from torchpar.contract.errors import Place, Problem, printable

KNOWN_SECTIONS = ("Match", "Host", "Train", "Infer")

# Names of sections and keys that are another program's, as in systemd.syntax(7).
FOREIGN = "X-"

# Nobody mends more at once, and a file that is no conf at all has one in every line.
MOST_PROBLEMS = 100

# Of a key, or of what is between brackets.
_LONGEST_NAME = 255

# A line that is hardly meant to go on from the one before.
_BEGINNING = re.compile(r"\[(?:Match|Host|Train|Infer)\b[^\]]*\]|(?:Service\.)?[A-Z][A-Za-z]*[a-z][A-Za-z]*=")

# How much of it a message quotes.
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class ConfFile:
    """One file of the configuration: the path that messages name, and its text.

    `applied`: it is that of a generation, so a torchpar has put it in force, which may have known other names.
    """

    path: str
    text: str
    applied: bool = field(default=False, compare=False)


class Line(NamedTuple):
    """A line with those that it is continued on: of each its index in `text`, from 0 or below, and its number."""

    path: str
    text: str
    parts: Sequence[tuple[int, int]]

    @property
    def origin(self) -> Place:
        """The file and line where it begins."""
        return Place(self.path, self.parts[0][1])

    def place(self, at: int) -> tuple[Place, int]:
        """Returns the file and line of a character in `text`, and its number on that line from 1."""
        index, number = self.parts[bisect_right(self.parts, at, key=lambda part: part[0]) - 1]
        return Place(self.path, number), at - index + 1

    def odd_one(self) -> str:
        """Returns "; character 3 is U+00A0 NO-BREAK SPACE" for the first that is not ASCII, or ""."""
        found = ODD.search(self.text) or re.search(r"[^\t -~]", self.text)
        if not found:
            return ""
        place, character = self.place(found.start())
        number = "" if place == self.origin else f" of line {place.line}"
        return f"; character {character}{number} is {name_of(found[0])}"


class Assignment(NamedTuple):
    """Key=Value, where it begins, and where each character of the value stands: it is that of the line from `start`."""

    key: str
    text: str
    origin: Place
    line: Line
    start: int

    def place(self, at: int) -> tuple[Place, int]:
        """Returns the file and line of a character in the value, and its number on that line from 1."""
        return self.line.place(self.start + at)


@dataclass(frozen=True, slots=True)
class Section:
    """A section's header without brackets, where it stands, and what is in it."""

    header: str
    origin: Place
    assignments: list[Assignment]


@dataclass
class Problems:
    """The errors in the files, and `notes`, which are warnings; of very many errors the first.

    `applied` says whether the file that is being read was in force before.
    """

    errors: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    applied: bool = False

    def add(self, place: Place, what: str) -> None:
        """Keeps an error."""
        self.errors.append(Problem(place, what))

    def unknown(self, place: Place, what: str) -> None:
        """Keeps an error on a name; in what has been applied it is passed over, and keeps nothing from going on."""
        if self.applied:
            self.note(place, f"{what}; it is passed over, as this was in force before")
        else:
            self.add(place, what)

    def note(self, place: Place, what: str) -> None:
        """Keeps a note."""
        if len(self.notes) < MOST_PROBLEMS:
            self.notes.append(Problem(place, what))
        elif len(self.notes) == MOST_PROBLEMS:
            self.notes.append(Problem(place, f"there are more than {MOST_PROBLEMS} notes; no other is shown"))

    def are_too_many(self) -> bool:
        """Says whether there are so many errors that it is of no use to look for more."""
        return len(self.errors) >= MOST_PROBLEMS


def split_sections(file: ConfFile, problems: Problems) -> Iterator[Section]:
    """Splits a file into sections with their assignments, in order; syntax errors go to `problems`."""
    if file.text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        problems.add(Place(file.path, 1), "the file is UTF-16 or UTF-32; save it as UTF-8")
        return
    section: Section | None = None
    ignoring = False
    first = True
    for line in _logical_lines(file):
        if problems.are_too_many():
            break
        _note_swallowed(line, problems)
        if line.text.startswith("["):
            if section:
                yield section
            header = _read_header(line, problems, first=first)
            section = Section(header, line.origin, []) if header else None
            ignoring, first = section is None, False
        elif not ignoring and (assignment := _read_assignment(line, problems)):
            if section:
                section.assignments.append(assignment)
            else:
                problems.add(line.origin, f"{assignment.key}= stands before the first section header")
    if section:
        yield section
    end = file.text.rstrip("\r\n")
    last = end.rpartition("\n")[2].strip(BLANKS)
    if last.endswith("\\") and _ends_in_one(last) and not last.startswith(("#", ";")):
        place = Place(file.path, end.count("\n") + 1)
        problems.note(place, "the last line ends in a \\, and there is none to go on in")


def _note_swallowed(line: Line, problems: Problems) -> None:
    """Notes a line that looks like a section or a key and that the one before it goes on in, as with systemd."""
    for (index, number), (end, _) in pairwise([*line.parts, (len(line.text), 0)]):
        if index > 0 and (found := _BEGINNING.match(line.text, index, end)):
            what = f"'{printable(found[0], _SHOWN)}' is part of the value of the line before, which ends in a \\"
            problems.note(Place(line.path, number), what)


def _read_header(line: Line, problems: Problems, *, first: bool) -> str | None:
    """Returns the text between the brackets; None where the section is not to be read."""
    text = line.text
    header = " ".join(re.findall(rf"[^{BLANKS}]+", text[1:-1])) if text.endswith("]") else ""
    word = header.partition(" ")[0]
    shown = printable(header, _SHOWN)
    if header.startswith(FOREIGN):
        return None
    if not header or len(header) > _LONGEST_NAME:
        what = f"'{printable(text, _SHOWN)}' is not a section header such as [Train resnet]{line.odd_one()}"
    elif header == "Match" and not first:
        what = "[Match] must be the first section of its file; it skips all of it"
    elif header not in KNOWN_SECTIONS and word not in ("Train", "Infer"):
        problems.unknown(line.origin, f"unknown section [{shown}]{hint(word, KNOWN_SECTIONS)}{line.odd_one()}")
        return None
    elif not header.isascii() or NOT_PLAIN.search(header):
        what = f"[{shown}]: a name is plain ASCII text{line.odd_one()}"
    else:
        return header
    problems.add(line.origin, what)
    return None


def _read_assignment(line: Line, problems: Problems) -> Assignment | None:
    """Key=Value of a line; None where it is something else, or another program's."""
    key, equals, value = line.text.partition("=")
    key, text = key.strip(BLANKS), value.strip(BLANKS)
    if equals and key.startswith((FOREIGN, f"Service.{FOREIGN}")):
        return None
    start = len(line.text) - len(value.lstrip(BLANKS))
    place, what = line.origin, ""
    if found := NOT_PLAIN.search(line.text):
        place, character = line.place(found.start())
        what = (
            f"character {character} is {name_of(found[0])}: the line has a control character or is not UTF-8 text; "
            "write plain text"
        )
    elif not equals or not key:
        shown = printable(line.text, _SHOWN)
        what = f"'{shown}' is neither [Section] nor Key=Value nor a # comment{line.odd_one()}"
    elif not key.isascii() or len(key) > _LONGEST_NAME:
        what = f"'{printable(key, _SHOWN)}' is not a key{line.odd_one()}"
    elif text.endswith("\\") and _ends_in_one(text):
        place, character = line.place(start + len(text) - 1)
        what = (
            f"{key}=: character {character} is a \\ that continues nothing; to go on in the next line let no blank "
            "follow it, for a backslash write \\\\"
        )
    if what:
        problems.add(place, what)
        return None
    return Assignment(key, text, place, line, start)


def _logical_lines(file: ConfFile) -> Iterator[Line]:
    """Yields the lines that are not blank nor comments, without the blanks around them.

    A line that ends in an odd number of `\\` goes on in the next that is no comment, with a blank in place of the last.
    """
    # As the first character of a file it is an editor's mark, and systemd skips it too.
    lines = file.text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    texts: list[str] = []
    parts: list[tuple[int, int]] = []
    length = 0
    for number, line in enumerate(lines, start=1):
        stripped = line.strip(BLANKS)
        if stripped.startswith(("#", ";")) or not (stripped or texts):
            continue
        goes_on = line.endswith("\\") and _ends_in_one(line)
        if goes_on or texts:
            parts.append((length, number))
            texts.append(line[:-1] + " " if goes_on else line)
            length += len(line)
        if goes_on:
            continue
        if not texts:
            yield Line(file.path, stripped, ((-line.find(stripped), number),))
        else:
            yield from _joined(file.path, texts, parts)
            texts, parts, length = [], [], 0
    yield from _joined(file.path, texts, parts)


def _joined(path: str, texts: list[str], parts: list[tuple[int, int]]) -> Iterator[Line]:
    joined = "".join(texts)
    left = joined.lstrip(BLANKS)
    if left:
        # It begins where its text does, though empty lines may be continued before.
        blanks = len(joined) - len(left)
        first = bisect_right(parts, blanks, key=lambda part: part[0]) - 1
        yield Line(path, left.rstrip(BLANKS), [(index - blanks, number) for index, number in parts[first:]])


def _ends_in_one(text: str) -> bool:
    """Says whether the text ends in a backslash that no other backslash escapes."""
    return bool((len(text) - len(text.rstrip("\\"))) % 2)


def hint(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean X?" with the nearest of the known names, or ""."""
    folded = {name.lower(): name for name in known if len(name) <= 100}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6) if len(word) <= 100 else ()
    return f"; did you mean {folded[close[0]]}?" if close else ""
