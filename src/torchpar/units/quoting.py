"""Text for a unit file: the only way in which a value gets there, so that none can be more or less than one value.

Three kinds, as systemd reads them: a word of several, a value that is a whole line, and a line that is systemd's own
text, in which % stands for something. None of them ends in a backslash that would have the next line go on in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class UnitText(str):
    """Text that may stand in a unit as it is."""

    __slots__ = ()


def quote_word(text: str) -> UnitText:
    """Quotes one word of a systemd command line or Environment=: `%` doubled, in quotes where it must be.

    A control character, a newline too, is a C escape. What has none, a path for one, is read the same where systemd
    knows no such escapes. See "Quoting" in systemd.syntax(7).
    """
    plain = text.replace("%", "%%")
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", plain):
        return UnitText(plain)
    quote = "'" if '"' in plain and "'" not in plain else '"'
    return UnitText(quote + re.sub(rf"[\\{quote}\x01-\x08\x0a-\x1f\x7f]", _escape, plain) + quote)


def quote_words(texts: Iterable[str]) -> UnitText:
    """Quotes all words of a line."""
    return UnitText(" ".join(map(quote_word, texts)))


def quote_path(text: str) -> UnitText:
    """Quotes a value that systemd takes as a whole line: `%` doubled. Raises ValueError as whole_line() does."""
    return whole_line(text.replace("%", "%%"))


def whole_line(text: str) -> UnitText:
    """Returns a value in systemd's own words. Raises ValueError for text that would be no line, or the next one too."""
    # A tab is white space to systemd, and harmless within quotes; anything else could end the line.
    if any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in text):
        raise ValueError(f"{text!r} has a control character")
    if (len(text) - len(text.rstrip("\\"))) % 2:
        raise ValueError(f"{text!r} ends in a backslash, with which the next line would go on in it")
    if text != text.strip(" \t"):
        raise ValueError(f"{text!r} has blanks at an end, which systemd takes away")
    return UnitText(text)


def only_unit_text(value: object) -> object:
    """Raises TypeError for what a template file would write as it is, but for numbers."""
    if isinstance(value, (UnitText, int)):
        return value
    raise TypeError(f"{value!r} is written into a unit without one of word, words, path and line")


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in "\\\"'":
        return "\\" + character
    return {"\n": "\\n", "\r": "\\r"}.get(character) or f"\\x{ord(character):02x}"
